#!/usr/bin/env bash
# Makes a certificate for trying https out, signed by nobody.
set -Eeuo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly CONTAINER_USER=10001

folder=$SECRETS_DIR/tls
days=90
names=()

usage() {
  cat <<'EOT'
Usage: scripts/make_dev_cert.sh [--dir FOLDER] [--days N] [--yes] [--dry-run] [--json] [NAME...]

Makes tls.crt and tls.key for trying https out, signed by nobody: browsers warn, `curl --cacert FOLDER/tls.crt` does not.
The stack then serves https and leads http there:
  TLS_DIR=FOLDER scripts/up.sh

  NAME...        host names and IP addresses that it holds for; localhost, 127.0.0.1 and this host's name when not given
  --dir FOLDER   where to; .secrets/tls when not given
  --days N       how long it holds, from 1 to 825; 90 when not given
  --yes          replace a certificate that is there without asking
  --dry-run      say what would be made; change nothing
  --json         the result as one line of JSON
  --help         this text
EOT
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --dir)
        [[ -n ${2-} ]] || usage_error "--dir needs a folder"
        folder=$2
        shift
        ;;
      --days)
        if [[ ! ${2-} =~ ^[0-9]{1,3}$ ]] || ((10#$2 < 1 || 10#$2 > 825)); then
          usage_error "--days is '${2-}'; accepted: a number from 1 to 825"
        fi
        days=$((10#$2))
        shift
        ;;
      -*) parse_common_option "$1" || usage_error "unknown argument '$1'; accepted: --dir, --days, --yes, --dry-run, --json, --help, names" ;;
      *)
        [[ $1 =~ ^[A-Za-z0-9*._-]{1,253}$ || $1 =~ ^[0-9A-Fa-f:]+$ ]] ||
          usage_error "'$1' is no host name and no IP address"
        names+=("$1")
        ;;
    esac
    shift
  done
}

# The names in the form of a certificate's extension.
alternative_names() {
  local name found=
  for name in "${names[@]}"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then
      found+=,IP:$name
    else
      found+=,DNS:$name
    fi
  done
  echo "${found#,}"
}

# Both files, or neither: beside the place first, and the key readable for the container's user alone where that can be.
make_certificate() {
  local making problem
  mkdir -p "$folder" 2> /dev/null || die "$folder cannot be made"
  making=$(mktemp -d "$folder/.making.XXXXXX") || die "$folder cannot be written to"
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$making'" EXIT
  problem=$(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$days" -subj "/CN=${names[0]:0:64}" \
    -addext "subjectAltName=$(alternative_names)" -addext basicConstraints=critical,CA:FALSE \
    -addext extendedKeyUsage=serverAuth -keyout "$making/tls.key" -out "$making/tls.crt" 2>&1) ||
    die "openssl made no certificate: $(tail -n 1 <<< "$problem")"
  if is_root; then
    chown "$CONTAINER_USER" "$making/tls.key"
    chmod 0400 "$making/tls.key"
  else
    chmod 0444 "$making/tls.key" # the folder .secrets keeps the other people of this host out
  fi
  chmod 0444 "$making/tls.crt"
  mv -f "$making/tls.key" "$making/tls.crt" "$folder/"
  chmod 0755 "$folder"
}

report() {
  local until
  until=$(openssl x509 -in "$folder/tls.crt" -noout -enddate)
  until=${until#notAfter=}
  if $as_json; then
    printf '{"folder": "%s", "names": "%s", "not_after": "%s"}\n' "$folder" "${names[*]}" "$until"
  else
    printf 'folder:   %s\nnames:    %s\nvalid to: %s\nnext:     TLS_DIR=%s scripts/up.sh\n' "$folder" "${names[*]}" "$until" "$folder"
  fi
}

main() {
  parse_arguments "$@"
  cd "$ROOT"
  folder=$(realpath -m -- "$folder")
  # It is written into .env, and into JSON.
  [[ $folder =~ ^[A-Za-z0-9/._@+-]+$ ]] || usage_error "--dir is '$folder'; accepted: a path of letters, digits and / . _ @ + -"
  ((${#names[@]})) || mapfile -t names < <(printf '%s\n' localhost 127.0.0.1 "$(hostname)" | sort -u)
  has openssl || die "openssl is not installed here; apt-get install openssl"
  if $dry_run; then
    tell_plan folder "$folder" names "${names[*]}" days "$days" <<< "Would make $folder/tls.crt and tls.key for ${names[*]}, valid for $days days. Nothing was changed."
    return
  fi
  [[ ! -e $folder/tls.crt && ! -e $folder/tls.key ]] || confirm "$folder holds a certificate. Replace it?"
  [[ $folder != "$SECRETS_DIR"/* ]] || (umask 077 && mkdir -p "$SECRETS_DIR")
  step "making a certificate for ${names[*]}, valid for $days days"
  make_certificate
  report
}

main "$@"
