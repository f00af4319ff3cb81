#!/usr/bin/env bash
# Writes the part of nginx's configuration that depends on the environment, then becomes nginx.
#   start-nginx.sh          run
#   start-nginx.sh --check  check the configuration and exit (at build)
# Reads ENABLE_SCHEDULER (as SCHEDULER_AUTOSTART from entrypoint.sh), TRUSTED_PROXIES, and whether a certificate is
# mounted at /etc/nginx/tls.
set -Eeuo pipefail

readonly GENERATED=/run/whalefall/nginx
readonly WEB=127.0.0.1:5001
readonly SCHEDULER=127.0.0.1:5002
readonly CERTIFICATE=/etc/nginx/tls/tls.crt
readonly CERTIFICATE_KEY=/etc/nginx/tls/tls.key

refuse() {
  echo "[nginx] $*" >&2
  exit 1
}

# Both upstreams; without a scheduler program its routes go to web, which answers 409 by contract.
write_upstreams() {
  local scheduler=$SCHEDULER
  [[ ${SCHEDULER_AUTOSTART:-true} == true ]] || scheduler=$WEB
  local name address
  for name in web scheduler; do
    address=$WEB
    [[ $name == web ]] || address=$scheduler
    # Idle connections end here before Gunicorn (keepalive 30 s) ends them: no request meets a closed one.
    cat <<EOT
upstream whalefall_$name {
    server $address max_fails=0;
    keepalive 16;
    keepalive_timeout 20s;
}
EOT
  done > "$GENERATED/upstreams.conf"
}

write_trusted_proxies() {
  local -a proxies
  local proxy
  read -ra proxies <<< "${TRUSTED_PROXIES//,/ }"
  for proxy in ${proxies[@]+"${proxies[@]}"}; do
    [[ $proxy =~ ^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$ ]] ||
      refuse "TRUSTED_PROXIES holds '$proxy'; accepted: IP addresses or networks such as 10.0.0.0/8, separated by commas"
  done
  {
    for proxy in ${proxies[@]+"${proxies[@]}"}; do
      echo "set_real_ip_from $proxy;"
    done
    echo "geo \$realip_remote_addr \$from_trusted_proxy {"
    echo "    default 0;"
    for proxy in ${proxies[@]+"${proxies[@]}"}; do
      echo "    $proxy 1;"
    done
    echo "}"
  } > "$GENERATED/trusted_proxies.conf"
}

write_https_server() {
  : > "$GENERATED/https.conf"
  if [[ -e $CERTIFICATE || -e $CERTIFICATE_KEY ]]; then
    [[ -r $CERTIFICATE && -r $CERTIFICATE_KEY ]] ||
      refuse "https needs tls.crt and tls.key in the mounted folder, readable for user $(id -u)"
    echo "include /etc/nginx/https_server.conf;" > "$GENERATED/https.conf"
  fi
}

main() {
  mkdir -p "$GENERATED"
  write_upstreams
  TRUSTED_PROXIES=${TRUSTED_PROXIES-} write_trusted_proxies
  write_https_server
  if [[ ${1-} == --check ]]; then
    nginx -t -q -e stderr
    rm -r "$GENERATED"
    return
  fi
  # nginx has no format for its error log; the prefix makes it filterable like the other programs' lines.
  exec nginx -e stderr -g 'daemon off;' 2> >(exec sed --unbuffered 's/^/[nginx] /' >&2)
}

main "$@"
