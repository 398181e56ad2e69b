# What the scripts beside this one share; not to be run.

BUNDLE=/tmp/podlane/podlane.run
PODLANE=/opt/podlane/current/bin
FIREWALLD=''
! systemctl is-active --quiet firewalld.service || FIREWALLD=--firewalld

installed() { [ -e /etc/podlane/install.json ]; }
