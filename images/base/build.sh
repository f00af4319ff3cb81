#!/usr/bin/env bash
# Makes the base image from Debian packages, where no image registry can be reached.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

readonly RELEASE=trixie
tag=whalefall/base:$RELEASE

usage() {
  cat <<'EOT'
Usage: images/base/build.sh [--tag IMAGE]

Makes a small Debian base image with mmdebstrap, from the sources in this host's own apt configuration
(DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR stand in where the host is not Debian), and imports it into Docker.

  --tag IMAGE   the image's name; whalefall/base:trixie when not given
  --help        this text
EOT
}

main() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --tag)
        [[ -n ${2-} ]] || usage_error "--tag needs the name of an image"
        tag=$2
        shift 2
        ;;
      --help)
        usage
        return
        ;;
      *) usage_error "unknown argument '$1'; accepted: --tag IMAGE, --help" ;;
    esac
  done

  has mmdebstrap || die "mmdebstrap is missing; install it: apt-get install mmdebstrap"
  has docker || die "docker is missing; scripts/up.sh --install-engine installs it"
  [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] ||
    die "Debian's keys are missing; install them: apt-get install debian-archive-keyring"
  local sources
  sources=$(debian_sources "$RELEASE") ||
    die "this host's apt configuration names no Debian archive; set DEBIAN_MIRROR to the address of one"

  folder=$(mktemp -d) # not local: the trap runs after main
  trap 'rm -rf "$folder"' EXIT
  apt_fetch_settings > "$folder/apt.conf"

  # --variant=apt: what is essential, and apt for the images that build on this one.
  # The excluded paths are Debian's slim images': about a third of the size. They hold for later installations too.
  # The sources name this host's mirror, so they do not stay.
  # shellcheck disable=SC2016 # mmdebstrap's own $1, the new root
  APT_CONFIG="$folder/apt.conf" mmdebstrap --quiet --variant=apt --format=tar \
    --include=ca-certificates \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' \
    --aptopt='Acquire::Languages "none"' \
    --aptopt='APT::Install-Recommends "false"' \
    --customize-hook='rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/var/log/apt "$1"/var/log/*.log' \
    --customize-hook='rm -rf "$1"/var/cache/debconf/*-old "$1"/var/cache/ldconfig/aux-cache "$1"/usr/share/locale' \
    "$RELEASE" "$folder/base.tar" - <<< "$sources" >&2
  docker import --change 'CMD ["bash"]' "$folder/base.tar" "$tag" > /dev/null
  printf '%s\n' "$tag"
}

main "$@"
