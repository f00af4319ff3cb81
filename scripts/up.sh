#!/usr/bin/env bash
# Brings the scheduler up on this machine: one command from a bare system to a healthy stack.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly FREE_DISK_MB=2048 # images, their build cache, and room for the first weeks of runs
readonly FREE_MEMORY_MB=400 # the stack at work, and a build
readonly HEALTHY_WITHIN_S=180
readonly SECRETS_DIR=$ROOT/.secrets

may_install=false
new_secrets=false

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
      --install-engine) may_install=true ;;
      --help)
        usage
        exit 0
        ;;
      *) usage_error "unknown argument '$1'; accepted: --install-engine, --help" ;;
    esac
    shift
  done
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
  new_secrets=true
}

keep_settings() {
  [[ -z ${HTTP_PORT-} ]] || keep_setting HTTP_PORT "$HTTP_PORT"
  [[ -z ${COMPOSE_PROJECT_NAME-} ]] || keep_setting COMPOSE_PROJECT_NAME "$COMPOSE_PROJECT_NAME"
  keep_setting BASE_IMAGE "$BASE_IMAGE"
  keep_setting BUILD_SETTINGS_DIR "$BUILD_SETTINGS_DIR"
}

# --- start -----------------------------------------------------------------------------------------------------------

start_stack() {
  local -a recreate=()
  # A container that runs already still holds the secret that was there before.
  ! $new_secrets || recreate=(--force-recreate)
  step "starting the stack"
  compose up --detach --no-build "${recreate[@]}" >&2 < /dev/null || die "the stack could not be started; the reason is above"
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
  local port
  port=$(setting HTTP_PORT 80)

  ensure_engine "$may_install"
  check_port "$port"
  check_room
  prepare_build "$may_install"
  ensure_secrets
  keep_settings
  build_images
  start_stack
  wait_until_healthy
  step "healthy"

  printf 'Address:  %s\nAdmin:    admin\nPassword: in the file %s\n' "$(address "$port")" "$SECRETS_DIR/admin_password"
}

main "$@"
