#!/bin/sh
# Podlane @VERSION@: one file with all that an installation needs. No network, no compiler.
#
# usage: sh podlane-@VERSION@.run install|upgrade|uninstall|preflight [OPTION...]   (as root)
#        sh podlane-@VERSION@.run version | check | extract DIRECTORY
#
# It unpacks into a folder of its own below ${TMPDIR:-/var/tmp}, which goes when it is
# done, after it has compared the SHA-256 of what is behind this script.
set -eu
VERSION='@VERSION@'
DIGEST='@DIGEST@'
SIZE='@SIZE@'
BEGIN='@BEGIN@' # first byte of the archive, counted from 1
ARCH='@ARCH@'
PYTHONS='@PYTHONS@' # that there are packages for
OWN_PYTHON='@OWN_PYTHON@' # the version of the Python that is in it

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

usage() {
    cat <<END
usage: sh $0 COMMAND [OPTION...]      (as root)

  install --role server|node|all     make this machine part of a cluster; --help has the options
  upgrade                            replace the installed version by this one ($VERSION)
  uninstall [--purge]                remove Podlane from this machine
  preflight --role ROLE              say what this machine lacks; change nothing
  version                            print the version of this file
  check                              compare the SHA-256 of what is in it
  extract DIRECTORY                  unpack it
END
}

archive() { tail -c "+$BEGIN" "$0"; }

check() {
    command -v sha256sum >/dev/null || die "check $0: sha256sum is missing (coreutils)"
    have=$(archive | sha256sum | cut -d' ' -f1)
    [ "$have" = "$DIGEST" ] || die "check $0: it is damaged: expected SHA-256 $DIGEST of what is behind the script," \
        "got $have ($(archive | wc -c) of $SIZE bytes); copy it again"
}

unpack() { # folder, options of tar...
    folder=$1
    shift
    archive | gzip -dc | tar -xf - -C "$folder" --no-same-owner "$@" || die "unpack $0 into $folder: see above"
}

# Prints the first Python that there are packages for here, or nothing.
find_python() {
    for candidate in "${PODLANE_PYTHON:-}" /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        abi=$("$candidate" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case " $PYTHONS " in *" $abi "*)
            command -v "$candidate"
            return 0
            ;;
        esac
    done
    return 0
}

[ $# -gt 0 ] || {
    usage >&2
    exit 2
}
case $1 in
help | -h | --help)
    usage
    exit 0
    ;;
version)
    echo "$VERSION"
    exit 0
    ;;
check)
    check
    echo "$0: good"
    exit 0
    ;;
extract)
    [ $# -eq 2 ] || die "extract: expected a directory"
    check
    mkdir -p "$2"
    unpack "$2"
    exit 0
    ;;
install | upgrade | uninstall | preflight) ;;
*)
    echo "error: unknown command '$1'" >&2
    usage >&2
    exit 2
    ;;
esac

[ "$(uname -m)" = "$ARCH" ] || die "this file is for $ARCH, and the machine is $(uname -m)"
check
umask 022
unset PYTHONPATH PYTHONHOME
PYTHON=$(find_python)
OWN=no
if [ -n "$PYTHON" ]; then
    ABI=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
elif [ "$OWN_PYTHON" != no ]; then
    OWN=yes
    ABI=$OWN_PYTHON
else
    die "find Python: this file has packages for Python $PYTHONS, and none of them is here;" \
        "install one (python3), name it with PODLANE_PYTHON, or use a bundle made with --with-python"
fi

FOLDER=$(mktemp -d "${TMPDIR:-/var/tmp}/podlane.XXXXXX")
trap 'rm -rf "$FOLDER"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
EXCLUDED=''
for each in $PYTHONS; do
    [ "$each" = "$ABI" ] || EXCLUDED="$EXCLUDED --exclude=sites/cp$(echo "$each" | tr -d .)"
done
# shellcheck disable=SC2086 # a list of words
unpack "$FOLDER" $EXCLUDED
SITE=$FOLDER/sites/cp$(echo "$ABI" | tr -d .)
if [ -d "$FOLDER/sites/any" ]; then cp -a "$FOLDER/sites/any/." "$SITE/"; fi
mv "$SITE" "$FOLDER/site"
rm -rf "$FOLDER/sites"
[ $OWN = no ] || PYTHON=$FOLDER/python/bin/python3

PODLANE_BUNDLE=$FOLDER PODLANE_BUNDLE_DIGEST=$DIGEST PODLANE_BUNDLE_PYTHON=$PYTHON PODLANE_BUNDLE_ABI=$ABI \
    PODLANE_BUNDLE_OWN_PYTHON=$OWN "$PYTHON" "$FOLDER/run.py" "$@" || exit $?
exit 0
