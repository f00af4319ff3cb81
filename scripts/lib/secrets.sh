# The secrets of a stack, as files.
# shellcheck shell=bash

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

# make_secret NAME LENGTH: once.
make_secret() {
  local file=$SECRETS_DIR/$1
  [[ ! -s $file ]] || return 0
  step "making the secret .secrets/$1"
  random_text "$2" > "$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
  made+=("$1")
}

# random_text LENGTH: letters and digits that cannot be mistaken for each other.
random_text() {
  head -c 4096 /dev/urandom | LC_ALL=C tr -dc 'A-HJ-NP-Za-km-z2-9' | cut -c "1-$1"
}
