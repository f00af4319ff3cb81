# What the scripts share: messages, and what they read from the host. Sourced, not run.
# shellcheck shell=bash

readonly ENGINE_MINIMUM=20.10 COMPOSE_MINIMUM=2.20
readonly PUBLIC_BASE=debian:trixie-slim OWN_BASE=whalefall/base:trixie

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly ENV_FILE=$ROOT/.env BUILD_DIR=$ROOT/.build SECRETS_DIR=$ROOT/.secrets

# Progress goes to stderr with the seconds since the start; stdout is for results.
step() {
  printf '[%4ss] %s\n' "$SECONDS" "$*" >&2
}

warn() {
  printf 'warning: %s\n' "$*" >&2
}

# One line that says what is wrong, what is accepted and what to do.
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# The same for a command line that cannot be understood.
usage_error() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

has() {
  command -v "$1" > /dev/null 2>&1
}

is_root() {
  [[ $(id -u) -eq 0 ]]
}

# version_at_least HAVE WANT
version_at_least() {
  [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# A setting as Compose would find it: the environment, then .env, then the given default.
setting() {
  local value=${!1-}
  if [[ ! -v $1 && -f $ENV_FILE ]]; then
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

# --- the shape -------------------------------------------------------------------------------------------------------

# The shape that Compose addresses, by the compose file that COMPOSE_FILE names: prod, split or ha.
shape() {
  local files name
  files=$(setting COMPOSE_FILE)
  for name in split ha; do
    if [[ $files == *docker-compose.$name.yml* ]]; then
      echo "$name"
      return
    fi
  done
  echo prod
}

# use_shape SHAPE: Compose addresses it from now on, in this process; overlays in COMPOSE_FILE stay.
use_shape() {
  local files
  files=$(setting COMPOSE_FILE)
  if [[ $files =~ docker-compose\.(prod|split|ha)\.yml ]]; then
    COMPOSE_FILE=${files/docker-compose.${BASH_REMATCH[1]}.yml/docker-compose.$1.yml}
    export COMPOSE_FILE
  elif [[ $1 != prod ]]; then
    export COMPOSE_FILE=compose/docker-compose.$1.yml
  fi
}

project_name() {
  setting COMPOSE_PROJECT_NAME whalefall
}

# The running containers of a service, the oldest first.
containers_of() {
  docker ps --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False | tac
}

have_volume() {
  docker volume inspect "$(project_name)_$1" > /dev/null 2>&1
}

# --- what the host's own configuration says --------------------------------------------------------------------------

# Fields of /etc/os-release; empty where it has none.
os_field() {
  local line
  line=$(grep -m 1 "^$1=" /etc/os-release 2> /dev/null) || return 0
  line=${line#*=}
  line=${line#\"}
  printf '%s\n' "${line%\"}"
}

# The archive from which this host takes a release of itself, from its own apt configuration:
#   host_archive RELEASE -> URI, empty when it has none
host_archive() {
  has apt-get || return 0
  # shellcheck disable=SC2016 # apt's own placeholders
  apt-get indextargets --no-release-info --format '$(CREATED_BY) $(RELEASE) $(REPO_URI)' 2> /dev/null |
    awk -v release="$1" '$1 == "Packages" && $2 == release && !found { print $3; found = 1 }'
}

# The Debian archives of this host: "MAIN SECURITY". DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR stand in on a host that
# is not Debian, or that has none.
debian_archives() {
  local main security release
  main=$(setting DEBIAN_MIRROR)
  security=$(setting DEBIAN_SECURITY_MIRROR)
  if [[ $(os_field ID) == debian ]]; then
    release=$(os_field VERSION_CODENAME)
    main=${main:-$(host_archive "$release")}
    security=${security:-$(host_archive "$release-security")}
  fi
  [[ -n $main ]] || return 1
  printf '%s %s\n' "$main" "$security"
}

# Sources (deb822) of a Debian release, from this host's archives; fails where it has none.
debian_sources() {
  local release=$1 archives main security keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  archives=$(debian_archives) || return 1
  read -r main security <<< "$archives"
  printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main\nSigned-By: %s\n' \
    "$main" "$release" "$release" "$keyring"
  if [[ -n $security ]]; then
    printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main\nSigned-By: %s\n' \
      "$security" "$release" "$keyring"
  fi
}

# What this host's apt has set about fetching (proxies, checks), as apt configuration. No hooks, no credentials' files.
apt_fetch_settings() {
  has apt-config || return 0
  apt-config dump 2> /dev/null |
    grep -E '^Acquire::(http|https|ftp|Retries|Check-Valid-Until|Check-Date|ForceIPv4|ForceIPv6|Queue-Mode)(::|[ ])' |
    grep -Ev '^Acquire::https::CA(Info|Path)' | grep -v ' "";$' || return 0
}

# What this host's pip has set about fetching, as one pip configuration: the files in pip's own order, then PIP_...
# variables. Addresses of local folders are left out: the build does not see them.
pip_fetch_settings() {
  local -a files=()
  local file key variable
  for file in /etc/xdg/pip/pip.conf /etc/pip.conf "${HOME:-/root}/.pip/pip.conf" \
    "${XDG_CONFIG_HOME:-${HOME:-/root}/.config}/pip/pip.conf" "${PIP_CONFIG_FILE:-}"; do
    [[ -f $file ]] && files+=("$file")
  done
  {
    [[ ${#files[@]} -eq 0 ]] || cat "${files[@]}"
    echo
    for key in index-url extra-index-url trusted-host proxy timeout retries; do
      variable=${key^^}
      variable=PIP_${variable//-/_}
      [[ -z ${!variable-} ]] || printf '%s = %s\n' "$key" "${!variable}"
    done
  } | awk '
    # Continued lines belong to the key above them.
    /^[ \t]+[^ \t#;]/ { if (key != "") value[key] = value[key] " " $0; next }
    /^[a-z-]+[ \t]*[=:]/ {
      key = $0; sub(/[ \t]*[=:].*/, "", key)
      text = $0; sub(/^[a-z-]+[ \t]*[=:]/, "", text)
      value[key] = text
      next
    }
    { key = "" }
    END {
      print "[global]"
      split("index-url extra-index-url trusted-host proxy timeout retries", wanted, " ")
      for (i = 1; i in wanted; i++) {
        count = split(value[wanted[i]], words, " ")
        line = ""
        for (j = 1; j <= count; j++) if (words[j] !~ /^(file:|\/)/) line = line " " words[j]
        if (line != "") print wanted[i] " =" line
      }
    }'
}

# The certificates that this host trusts.
ca_bundle() {
  local file
  for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    if [[ -s $file ]]; then
      cat "$file"
      return
    fi
  done
}

# --- packages and the engine -----------------------------------------------------------------------------------------

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
  docker buildx version > /dev/null 2>&1 || echo "Docker buildx"
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

# --- images ----------------------------------------------------------------------------------------------------------

# In the root, like a person would: .env, and a COMPOSE_FILE in it, count from there.
compose() {
  (cd "$ROOT" && docker compose "$@")
}

have_image() {
  docker image inspect "$1" > /dev/null 2>&1
}

# prepare_build true|false: the base image, and the host's settings for the build; exports BASE_IMAGE and
# BUILD_SETTINGS_DIR. The argument says whether missing packages may be installed.
prepare_build() {
  # The values of env.example are no choice of anybody's.
  BASE_IMAGE=$(setting BASE_IMAGE "$PUBLIC_BASE")
  [[ $BASE_IMAGE != "$PUBLIC_BASE" ]] || choose_base_image
  if [[ $BASE_IMAGE == "$OWN_BASE" ]]; then
    have_image "$OWN_BASE" || build_base_image "$1"
  else
    have_image "$BASE_IMAGE" || docker pull --quiet "$BASE_IMAGE" >&2 ||
      die "BASE_IMAGE $BASE_IMAGE is not here and cannot be pulled; leave it empty to have a base image chosen"
  fi
  BUILD_SETTINGS_DIR=$(setting BUILD_SETTINGS_DIR ../images/build-settings)
  if [[ $BUILD_SETTINGS_DIR == ../images/build-settings || $BUILD_SETTINGS_DIR == ../.build ]]; then
    BUILD_SETTINGS_DIR=../.build # counts from the folder compose/
    write_build_settings
  fi
  export BASE_IMAGE BUILD_SETTINGS_DIR
}

choose_base_image() {
  have_image "$PUBLIC_BASE" && return
  step "pulling $PUBLIC_BASE"
  if ! timeout 300 docker pull --quiet "$PUBLIC_BASE" > /dev/null 2>&1; then
    step "no image registry answers: the base image comes from Debian packages"
    BASE_IMAGE=$OWN_BASE
  fi
}

build_base_image() {
  if ! has mmdebstrap; then
    $1 || die "mmdebstrap is missing, and no image registry answers; run scripts/up.sh --install-engine as root"
    is_root || die "installing packages needs root"
    install_packages mmdebstrap debian-archive-keyring
  fi
  is_root || die "making the base image needs root: run sudo images/base/build.sh once"
  step "building the base image"
  "$ROOT/images/base/build.sh" --tag "$OWN_BASE" > /dev/null || die "the base image could not be built; the reason is above"
}

# The host's mirror, proxy and certificates for the build (images/build-settings/README.md).
write_build_settings() {
  mkdir -p "$BUILD_DIR"
  debian_sources trixie > "$BUILD_DIR/apt.sources" || : > "$BUILD_DIR/apt.sources" # then the base image's own
  apt_fetch_settings > "$BUILD_DIR/apt.conf"
  pip_fetch_settings > "$BUILD_DIR/pip.conf"
  ca_bundle > "$BUILD_DIR/ca.crt"
}

# The services whose images are built for a shape, each image once; what POSTGRES_IMAGE or VALKEY_IMAGE names is not.
services_to_build() {
  case $(shape) in
    prod) echo whalefall ;;
    split) printf '%s\n' nginx web ;;
    ha)
      printf '%s\n' nginx web
      [[ -n $(setting POSTGRES_IMAGE) ]] || echo postgres
      [[ -n $(setting VALKEY_IMAGE) ]] || echo valkey
      ;;
  esac
}

# The images of the shape.
build_images() {
  local log=$BUILD_DIR/build.log name image
  local -a services
  mkdir -p "$BUILD_DIR"
  if [[ $(shape) == ha ]]; then
    for name in POSTGRES_IMAGE VALKEY_IMAGE; do
      image=$(setting "$name")
      [[ -z $image ]] || have_image "$image" || docker pull --quiet "$image" >&2 ||
        die "$name $image is not here and cannot be pulled; leave it empty to have an image built"
    done
  fi
  mapfile -t services < <(services_to_build)
  step "building the images (details: .build/build.log)"
  if ! BUILDKIT_PROGRESS=plain compose build "${services[@]}" > "$log" 2>&1 < /dev/null; then
    tail -n 20 "$log" >&2
    die "the images could not be built; the end of the log is above, all of it in .build/build.log"
  fi
}

# --- secrets ---------------------------------------------------------------------------------------------------------

# The secrets of the shape, as files; `made` tells those that were not there.
ensure_secrets() {
  made=()
  (umask 077 && mkdir -p "$SECRETS_DIR")
  # The folder keeps other people of this host out; the files must be readable for the containers' users.
  chmod 0700 "$SECRETS_DIR"
  make_secret secret_key 64
  make_secret admin_password 20
  make_secret api_token 48
  if [[ $(shape) == ha ]]; then
    make_secret postgres_password 48
    make_secret valkey_password 48
  fi
}

# make_secret NAME LENGTH: once. Letters and digits that cannot be mistaken for each other.
make_secret() {
  local file=$SECRETS_DIR/$1
  [[ ! -s $file ]] || return 0
  step "making the secret .secrets/$1"
  head -c 4096 /dev/urandom | LC_ALL=C tr -dc 'A-HJ-NP-Za-km-z2-9' | cut -c "1-$2" > "$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
  made+=("$1")
}

# --- the running stack -----------------------------------------------------------------------------------------------

# The service in whose container the stack's commands run. COMPOSE_FILE and COMPOSE_PROJECT_NAME choose another stack,
# as for Compose.
case $(shape) in
  prod) SERVICE=whalefall ;;
  *) SERVICE=scheduler ;;
esac
readonly SERVICE

require_engine() {
  has docker || die "docker is not installed here; scripts/up.sh --install-engine installs it"
  docker info > /dev/null 2>&1 || die "the Docker engine does not answer; start it, or see whether you may use it"
}

# Sets stack_container; dies when the stack was never brought up here.
require_stack() {
  require_engine
  # The first of several. Cut off by `head`, Compose would now and then die of a closed pipe.
  stack_container=$(docker compose ps --all --quiet "$SERVICE") || die "Compose cannot read the stack; its words are above"
  stack_container=${stack_container%%$'\n'*}
  [[ -n $stack_container ]] || die "there is no stack here; scripts/up.sh brings it up"
}

require_running_stack() {
  require_stack
  [[ $(docker inspect --format '{{.State.Running}} {{.State.Restarting}}' "$stack_container") == "true false" ]] ||
    die "the stack is not running; scripts/up.sh starts it, docker compose logs $SERVICE says why it stopped"
}

# A command inside the stack's container; its exit code is the command's.
in_stack() {
  docker compose exec -T "$SERVICE" "$@" < /dev/null
}

# The same in a container of its own on the same volume, when the stack's cannot keep running.
beside_stack() {
  docker compose run --rm -T --no-deps "$SERVICE" "$@" < /dev/null
}
