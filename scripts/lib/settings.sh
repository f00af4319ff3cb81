# Settings as Compose finds them, the shape that they choose, and the project's name.
# shellcheck shell=bash

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
