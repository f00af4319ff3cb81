#!/usr/bin/env bash
# Has nginx take up a renewed certificate, and says so; one that it cannot use is refused, and the one before stays.
#   watch-certificate.sh PID   beside the nginx of that process id, as long as it runs
set -Eeuo pipefail

readonly FILES=(/etc/nginx/tls/tls.crt /etc/nginx/tls/tls.key)
readonly LOOK_EVERY_S=5 # no events: a folder that is mounted, or a link in it that is turned, sends none

tell() {
  json-lines nginx <<< "$*"
}

# What the files hold; nothing while one of them is not there.
held() {
  cat "${FILES[@]}" 2> /dev/null | sha256sum || true
}

main() {
  local nginx=$1 used seen problem refused=
  used=$(held)
  while sleep "$LOOK_EVERY_S" && kill -0 "$nginx" 2> /dev/null; do
    seen=$(held)
    if [[ $seen == "$used" || $seen == "$refused" ]]; then
      [[ $seen != "$used" ]] || refused=
      continue
    fi
    # Two files are not written at once: judged when they have come to rest.
    sleep 1
    [[ $(held) == "$seen" ]] || continue
    if problem=$(nginx -t -q -e stderr 2>&1); then
      kill -HUP "$nginx"
      used=$seen refused=
      tell "info: the renewed certificate is taken up"
    else
      refused=$seen
      tell "error: the renewed certificate is refused, the one before stays in use: ${problem%%$'\n'*}"
    fi
  done
}

main "$@"
