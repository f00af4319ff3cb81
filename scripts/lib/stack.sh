# The containers and volumes of this project, and commands in them.
# shellcheck shell=bash

# In the root, like a person would: .env, and a COMPOSE_FILE in it, count from there.
compose() {
  (cd "$ROOT" && docker compose "$@")
}

# The running containers of a service, the oldest first.
containers_of() {
  docker ps --quiet --no-trunc --filter "label=com.docker.compose.project=$(project_name)" \
    --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False | tac
}

name_of() {
  docker inspect --format '{{slice .Name 1}}' "$1"
}

# Its service and number, such as scheduler-2.
title_of() {
  docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}}-{{index .Config.Labels "com.docker.compose.container-number"}}' "$1"
}

# The name that the scheduler or worker in a container goes by.
node_of() {
  local name
  name=$(docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$1" | sed -n 's/^NODE_NAME=//p')
  [[ -n $name ]] || name=$(docker inspect --format '{{.Config.Hostname}}' "$1")
  echo "$name"
}

health_of() {
  docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}' "$1"
}

have_volume() {
  docker volume inspect "$(project_name)_$1" > /dev/null 2>&1
}

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

# Whether the container that require_stack found keeps running.
stack_runs() {
  [[ $(docker inspect --format '{{.State.Running}} {{.State.Restarting}}' "$stack_container") == "true false" ]]
}

require_running_stack() {
  require_stack
  stack_runs ||
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
