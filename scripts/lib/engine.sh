# Docker: its packages, its start, and whether it answers.
# shellcheck shell=bash

# install_packages NAME...: from the distribution, as root, without a terminal.
install_packages() {
  local log
  log=$(mktemp)
  if ! apt-get -qq -o DPkg::Lock::Timeout=120 update < /dev/null > "$log" 2>&1 ||
    ! DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
      install --yes --no-install-recommends "$@" < /dev/null >> "$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt-get could not install $*; its last words are above, all of them in $log"
  fi
  rm -f "$log"
}

engine_answers() {
  docker info > /dev/null 2>&1
}

# What is not here of what the stack needs, one a line.
missing_engine_parts() {
  # A client of an engine elsewhere needs no dockerd here.
  if ! has docker || { ! has dockerd && ! engine_answers; }; then
    echo "Docker Engine $ENGINE_MINIMUM or newer"
  fi
  local version
  version=$(docker compose version --short 2> /dev/null) || version=0
  version_at_least "${version#v}" "$COMPOSE_MINIMUM" || echo "Docker Compose $COMPOSE_MINIMUM or newer"
  is_bundle || docker buildx version > /dev/null 2>&1 || echo "Docker buildx"
}

# ensure_engine true|false: an engine that runs; installed first when it is missing and the argument is true.
ensure_engine() {
  local may_install=$1 missing version
  missing=$(missing_engine_parts | paste -s -d ',' | sed 's/,/, /g')
  if [[ -n $missing ]]; then
    $may_install || die "missing: $missing; install it, or run scripts/up.sh --install-engine as root"
    is_root || die "installing packages needs root"
    step "installing $missing"
    install_engine
    missing=$(missing_engine_parts | paste -s -d ',')
    [[ -z $missing ]] || die "still missing after the installation: $missing"
  fi
  engine_answers || start_engine
  version=$(docker version --format '{{.Server.Version}}')
  version_at_least "$version" "$ENGINE_MINIMUM" || die "the engine is $version; needed: $ENGINE_MINIMUM or newer"
}

# The distribution's own packages. mmdebstrap and Debian's keys make the base image where no registry answers.
install_engine() {
  local -a packages=(ca-certificates mmdebstrap debian-archive-keyring)
  case "$(os_field ID) $(os_field VERSION_ID)" in
    "debian 12")
      # Debian 12 has the engine, but Compose 1 and no buildx.
      pin_next_release
      packages+=(docker.io docker-compose docker-buildx)
      ;;
    "debian "*) packages+=(docker.io docker-cli docker-compose docker-buildx) ;;
    "ubuntu 22.04" | "ubuntu 22.10" | "ubuntu 23"* | "ubuntu 24"* | "ubuntu 25"* | "ubuntu 26"*)
      packages+=(docker.io docker-compose-v2 docker-buildx)
      ;;
    *) die "only Debian 12 and newer and Ubuntu 22.04 and newer are known; install Docker Engine, Compose and buildx by hand" ;;
  esac
  install_packages "${packages[@]}"
}

# Two packages come from Debian 13; the pin keeps apt from taking anything else from there, now or later.
pin_next_release() {
  local sources
  sources=$(debian_sources trixie) ||
    die "apt's configuration names no Debian archive to take Docker Compose from; set DEBIAN_MIRROR to the address of one"
  cat > /etc/apt/preferences.d/whalefall-trixie <<'EOT'
Package: docker-compose docker-buildx
Pin: release n=trixie*
Pin-Priority: 500

Package: *
Pin: release n=trixie*
Pin-Priority: -1
EOT
  printf '%s\n' "$sources" > /etc/apt/sources.list.d/whalefall-trixie.sources
}

start_engine() {
  local problem
  [[ -z ${DOCKER_HOST-} ]] || die "the engine at DOCKER_HOST=$DOCKER_HOST does not answer; start it, or unset DOCKER_HOST"
  if ! has dockerd || ! is_root; then
    problem=$(docker info --format '{{join .ServerErrors " "}}' 2>&1 | tail -n 1)
    die "the engine does not answer (${problem:-no reason given}); start it, or run this as root"
  fi
  step "starting the engine"
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker || die "systemd could not start the engine; see: journalctl -u docker"
    return
  fi
  # No init system here. A pid file may outlive its process (a snapshot, a crash), and its number may belong to
  # somebody else by now; dockerd would refuse to start because of it.
  local file
  for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
    if [[ -s $file ]] && ! is_process "$(< "$file")" dockerd containerd; then
      rm -f "$file"
    fi
  done
  local log=/var/log/dockerd.log deadline=$((SECONDS + 60))
  setsid dockerd < /dev/null >> "$log" 2>&1 &
  local pid=$!
  until engine_answers; do
    kill -0 "$pid" 2> /dev/null || die "dockerd ended: $(tail -n 1 "$log")"
    [[ $SECONDS -lt $deadline ]] || die "dockerd does not answer after 60 s; see $log"
    sleep 0.2
  done
}

# is_process PID NAME...: does this process run one of these programs?
is_process() {
  local pid=$1 name
  shift
  [[ -r /proc/$pid/comm ]] || return 1
  for name; do
    [[ $(< "/proc/$pid/comm") != "$name" ]] || return 0
  done
  return 1
}
