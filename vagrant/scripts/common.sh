# What the scripts beside this one share; not to be run.
# shellcheck shell=sh disable=SC2034 # they use it

BUNDLE=$(dirname "$0")/../podlane.run
PODLANE=/opt/podlane/current/bin
FIREWALLD=''
! systemctl is-active --quiet firewalld.service || FIREWALLD=yes

installed() { [ -e /etc/podlane/install.json ]; }
