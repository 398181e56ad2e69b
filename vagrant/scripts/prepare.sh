#!/bin/sh
# prepare.sh readonly|writable [URL]: what Podlane expects of a host, from the distribution's own packages.
# readonly: /usr is mounted read-only from now on, as on an Atomic-style host. URL: a dnf repository file with Docker.
set -eu

mode=$1
docker_repo=${2:-}

say() { printf 'prepare: %s\n' "$*"; }

die() {
    say "$*" >&2
    exit 1
}

debian() {
    systemctl mask --quiet --now etcd.service # the package starts one of its own on Podlane's port
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q install -y --no-install-recommends docker.io nftables iproute2 iptables conntrack procps \
        apparmor ca-certificates python3 etcd-server etcd-client busybox-static
}

fedora() {
    dnf -q -y install nftables iproute iptables-nft conntrack-tools procps-ng busybox ||
        dnf -q -y install nftables iproute iptables-nft conntrack-tools procps-ng
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || dnf -q -y install python3.11
    command -v dockerd >/dev/null 2>&1 && return 0
    if [ -n "$docker_repo" ]; then
        curl -fsSL -o /etc/yum.repos.d/podlane-docker.repo "$docker_repo" || die "cannot get $docker_repo"
    fi
    dnf -q -y install moby-engine || dnf -q -y install docker-ce || die "no Docker in the configured repositories:" \
        "name a repository file with PODLANE_VAGRANT_DOCKER_REPO"
}

. /etc/os-release
if [ -e /run/ostree-booted ]; then
    say "$PRETTY_NAME: its image is used as it is"
elif findmnt -n -o OPTIONS --target /usr/. | grep -qw ro; then
    say "/usr is read-only already: nothing to install"
else
    case " $ID ${ID_LIKE:-} " in
    *' debian '*) debian ;;
    *' fedora '* | *' rhel '*) fedora ;;
    *) die "$PRETTY_NAME is not known here: only Debian, Fedora, CentOS Stream and their relatives are" ;;
    esac
fi
systemctl enable --quiet --now docker.service

if [ "$mode" = readonly ] && ! grep -q '^/usr /usr ' /etc/fstab; then
    echo '/usr /usr none bind,ro 0 0' >>/etc/fstab
    mount /usr
    say "/usr is read-only from now on"
fi
