#!/usr/bin/env bash
# Brings the scheduler up on this machine: one command from a bare system to a healthy stack.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly ENGINE_MINIMUM=20.10 COMPOSE_MINIMUM=2.20
readonly FREE_DISK_MB=2048 # images, their build cache, and room for the first weeks of runs
readonly FREE_MEMORY_MB=400 # the stack at work, and a build
readonly HEALTHY_WITHIN_S=180
readonly PUBLIC_BASE=debian:trixie-slim OWN_BASE=whalefall/base:trixie
readonly SECRETS_DIR=$ROOT/.secrets BUILD_DIR=$ROOT/.build ENV_FILE=$ROOT/.env

install_engine=false

usage() {
  cat <<'EOT'
Usage: scripts/up.sh [--install-engine]

Checks this machine, makes the secrets and the images that are missing, starts the stack and waits until it is really
healthy. Safe to run again: what exists stays, what did not change is not restarted.

  --install-engine   install what is missing (Docker Engine, Compose, buildx, mmdebstrap) from the distribution's own
                     packages, as root; without it nothing is ever installed
  --help             this text

Settings come from the environment or from .env (every variable: env.example). Those given here are kept in .env:
  HTTP_PORT             the port to publish; 80 when not given
  COMPOSE_PROJECT_NAME  another name, for a second stack beside the first
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --install-engine) install_engine=true ;;
      --help)
        usage
        exit 0
        ;;
      *) die "unknown argument '$1'; accepted: --install-engine, --help" ;;
    esac
    shift
  done
}

# A setting as Compose would find it: the environment, then .env, then the given default.
setting() {
  local value=${!1-}
  if [[ -z $value && -f $ENV_FILE ]]; then
    value=$(sed -n "s/^$1=//p" "$ENV_FILE" | tail -n 1)
    value=${value#[\"\']}
    value=${value%[\"\']}
  fi
  printf '%s\n' "${value:-${2-}}"
}

# Keeps a setting in .env, so that plain `docker compose` commands find it.
keep_setting() {
  if [[ -f $ENV_FILE ]] && grep -q "^$1=" "$ENV_FILE"; then
    grep -qxF "$1=$2" "$ENV_FILE" || sed -i "s|^$1=.*|$1=$2|" "$ENV_FILE"
  else
    [[ -f $ENV_FILE ]] || printf '# Settings of this stack; every variable is in env.example.\n' > "$ENV_FILE"
    printf '%s=%s\n' "$1" "$2" >> "$ENV_FILE"
  fi
}

compose() {
  docker compose --project-directory "$ROOT" "$@"
}

# version_at_least HAVE WANT
version_at_least() {
  [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

is_root() {
  [[ $(id -u) -eq 0 ]]
}

# --- the engine ------------------------------------------------------------------------------------------------------

missing_parts() {
  has docker && has dockerd || echo "Docker Engine $ENGINE_MINIMUM or newer"
  local version
  version=$(docker compose version --short 2> /dev/null) || version=0
  version_at_least "${version#v}" "$COMPOSE_MINIMUM" || echo "Docker Compose $COMPOSE_MINIMUM or newer"
  docker buildx version > /dev/null 2>&1 || echo "Docker buildx"
}

ensure_engine_installed() {
  local missing
  # A client that talks to an engine elsewhere needs no dockerd here.
  missing=$(missing_parts | { if docker info > /dev/null 2>&1; then grep -v 'Docker Engine'; else cat; fi; } |
    paste -s -d ',' | sed 's/,/, /g') || true # grep finds nothing: nothing is missing
  [[ -n $missing ]] || return 0
  $install_engine || die "missing: $missing; install it, or run scripts/up.sh --install-engine as root"
  is_root || die "--install-engine installs packages and needs root"
  install_packages "$missing"
  missing=$(missing_parts | paste -s -d ',')
  [[ -z $missing ]] || die "still missing after the installation: $missing"
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
    install --yes --no-install-recommends "$@" < /dev/null >&2
}

# The distribution's own packages. mmdebstrap and Debian's keys make the base image where no registry answers.
install_packages() {
  local -a packages=(ca-certificates mmdebstrap debian-archive-keyring)
  case "$(os_field ID) $(os_field VERSION_ID)" in
    "debian 12")
      # Debian 12 has the engine, but Compose 1 and no buildx.
      pin_next_release
      packages+=(docker.io docker-compose docker-buildx)
      ;;
    "debian "*) packages+=(docker.io docker-cli docker-compose docker-buildx) ;;
    "ubuntu 22.04" | "ubuntu 23"* | "ubuntu 24"* | "ubuntu 25"* | "ubuntu 26"*)
      packages+=(docker.io docker-compose-v2 docker-buildx)
      ;;
    *) die "--install-engine knows Debian 12 and 13 and Ubuntu 22.04 and newer; install $1 by hand" ;;
  esac
  step "installing $1"
  apt-get -qq -o DPkg::Lock::Timeout=120 update < /dev/null >&2 || die "apt-get update failed; its words are above"
  apt_install "${packages[@]}" || die "apt-get could not install ${packages[*]}; its words are above"
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

ensure_engine_running() {
  docker info > /dev/null 2>&1 || start_engine
  local version
  version=$(docker version --format '{{.Server.Version}}')
  version_at_least "$version" "$ENGINE_MINIMUM" ||
    die "the engine is $version; needed: $ENGINE_MINIMUM or newer"
}

start_engine() {
  local problem
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
  until docker info > /dev/null 2>&1; do
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

# --- the machine -----------------------------------------------------------------------------------------------------

check_port() {
  local port=$1 owner
  if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port < 1 || 10#$port > 65535)); then
    die "HTTP_PORT is '$port'; accepted: a port number from 1 to 65535"
  fi
  owner=$(compose ps --format '{{.Publishers}}' 2> /dev/null) || owner=""
  [[ $owner != *" $port "* ]] || return 0 # this very stack has it
  port_is_free "$port" || die "port $port is taken by another program; free it, or choose one: HTTP_PORT=8080 scripts/up.sh"
}

# No listening socket on the port, over IPv4 or IPv6. Read from the kernel: a bare system has neither ss nor python.
port_is_free() {
  local hex
  hex=$(printf '%04X' "$((10#$1))")
  ! awk -v port=":$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 } END { exit !found }' \
    /proc/net/tcp /proc/net/tcp6 2> /dev/null
}

check_room() {
  local folder free memory
  folder=$(docker info --format '{{.DockerRootDir}}')
  # An engine elsewhere keeps its images elsewhere.
  if [[ -d $folder ]]; then
    free=$(df --output=avail -BM "$folder" | tail -n 1 | tr -dc '0-9')
    ((free >= FREE_DISK_MB)) ||
      die "$folder has $free MB free; needed: $FREE_DISK_MB MB (docker system prune frees what nothing uses)"
  fi
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  ((memory >= FREE_MEMORY_MB)) || die "$memory MB of memory are available; needed: $FREE_MEMORY_MB MB"
}

# --- what the stack is made of ---------------------------------------------------------------------------------------

have_image() {
  docker image inspect "$1" > /dev/null 2>&1
}

ensure_base_image() {
  local base
  base=$(setting BASE_IMAGE)
  if [[ -n $base ]]; then
    have_image "$base" || [[ $base == "$OWN_BASE" ]] || docker pull --quiet "$base" >&2 ||
      die "BASE_IMAGE $base is not here and cannot be pulled; leave it empty to have a base image chosen"
  elif have_image "$PUBLIC_BASE"; then
    base=$PUBLIC_BASE
  else
    step "pulling $PUBLIC_BASE"
    base=$PUBLIC_BASE
    if ! timeout 300 docker pull --quiet "$PUBLIC_BASE" > /dev/null 2>&1; then
      step "no image registry answers; the base image comes from Debian packages"
      base=$OWN_BASE
    fi
  fi
  if [[ $base == "$OWN_BASE" ]] && ! have_image "$OWN_BASE"; then
    if ! has mmdebstrap; then
      if ! $install_engine || ! is_root; then
        die "mmdebstrap is missing, and no image registry answers; run scripts/up.sh --install-engine as root"
      fi
      install_packages mmdebstrap
    fi
    is_root || die "making the base image needs root: run sudo images/base/build.sh once"
    step "building the base image"
    "$ROOT/images/base/build.sh" --tag "$OWN_BASE" > /dev/null || die "the base image could not be built; the reason is above"
  fi
  base_image=$base
}

ensure_secrets() {
  (umask 077 && mkdir -p "$SECRETS_DIR")
  # The folder keeps other people of this host out; the files must be readable for the container's user.
  chmod 0700 "$SECRETS_DIR"
  make_secret secret_key 64
  make_secret admin_password 20
  make_secret api_token 48
}

# make_secret NAME LENGTH: once. Letters and digits that cannot be mistaken for each other.
make_secret() {
  local file=$SECRETS_DIR/$1
  [[ ! -s $file ]] || return 0
  step "making the secret .secrets/$1"
  head -c 4096 /dev/urandom | LC_ALL=C tr -dc 'A-HJ-NP-Za-km-z2-9' | cut -c "1-$2" > "$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
}

# The host's mirror, proxy and certificates for the build (images/build-settings/README.md).
write_build_settings() {
  mkdir -p "$BUILD_DIR"
  debian_sources trixie > "$BUILD_DIR/apt.sources" || : > "$BUILD_DIR/apt.sources" # then the base image's own
  apt_fetch_settings > "$BUILD_DIR/apt.conf"
  pip_fetch_settings > "$BUILD_DIR/pip.conf"
  ca_bundle > "$BUILD_DIR/ca.crt"
}

keep_settings() {
  [[ -z ${HTTP_PORT-} ]] || keep_setting HTTP_PORT "$HTTP_PORT"
  [[ -z ${COMPOSE_PROJECT_NAME-} ]] || keep_setting COMPOSE_PROJECT_NAME "$COMPOSE_PROJECT_NAME"
  keep_setting BASE_IMAGE "$base_image"
  # Counts from the folder compose/.
  [[ -n $(setting BUILD_SETTINGS_DIR) ]] || keep_setting BUILD_SETTINGS_DIR ../.build
}

build_images() {
  local log=$BUILD_DIR/build.log
  step "building the images (details: .build/build.log)"
  if ! BUILDKIT_PROGRESS=plain compose build > "$log" 2>&1 < /dev/null; then
    tail -n 20 "$log" >&2
    die "the images could not be built; the end of the log is above, all of it in .build/build.log"
  fi
}

# --- start -----------------------------------------------------------------------------------------------------------

start_stack() {
  step "starting the stack"
  compose up --detach --no-build --quiet-pull >&2 < /dev/null || die "the stack could not be started; the reason is above"
}

wait_until_healthy() {
  local container state deadline=$((SECONDS + HEALTHY_WITHIN_S)) restarts
  container=$(compose ps --all --quiet whalefall)
  restarts=$(docker inspect --format '{{.RestartCount}}' "$container")
  step "waiting until it is healthy"
  while true; do
    state=$(docker inspect --format '{{.State.Health.Status}} {{.RestartCount}}' "$container")
    [[ $state != "healthy $restarts" ]] || return 0
    if ((SECONDS >= deadline)) || ((${state#* } > restarts + 1)); then
      docker logs --tail 30 "$container" >&2
      docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$container" | tail -n 3 >&2
      die "the stack is not healthy (${state% *}, restarted $((${state#* } - restarts)) times); its last words are above"
    fi
    sleep 0.25
  done
}

address() {
  local name
  name=$(hostname -f 2> /dev/null) || name=localhost
  if [[ $1 == 80 ]]; then
    printf 'http://%s/\n' "$name"
  else
    printf 'http://%s:%s/\n' "$name" "$1"
  fi
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  local port base_image
  port=$(setting HTTP_PORT 80)

  ensure_engine_installed
  ensure_engine_running
  check_port "$port"
  check_room
  ensure_base_image
  ensure_secrets
  write_build_settings
  keep_settings
  build_images
  start_stack
  wait_until_healthy
  step "healthy"

  printf 'Address:  %s\nAdmin:    admin\nPassword: in the file %s\n' "$(address "$port")" "$SECRETS_DIR/admin_password"
}

main "$@"
