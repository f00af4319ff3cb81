#!/usr/bin/env bash
# Writes the part of nginx's configuration that depends on the environment, then becomes nginx.
#   start-nginx.sh          run
#   start-nginx.sh --check  check the configuration and exit (at build)
# Reads UPSTREAMS (containers: web and scheduler are in containers of their own; set by the image), SCHEDULER_AUTOSTART
# (ENABLE_SCHEDULER in start-programs.sh's words), TRUSTED_PROXIES, METRICS_ALLOW, and whether a certificate is mounted at /etc/nginx/tls.
set -Eeuo pipefail

readonly GENERATED=/run/whalefall/nginx
readonly CERTIFICATE=/etc/nginx/tls/tls.crt
readonly CERTIFICATE_KEY=/etc/nginx/tls/tls.key

refuse() {
  echo "[nginx] $*" >&2
  exit 1
}

# Where web and scheduler are: nginx/upstreams/.
write_upstreams() {
  local scheduler=whalefall_scheduler
  if [[ ${UPSTREAMS-} == containers ]]; then
    echo "include /etc/nginx/upstreams/containers.conf;"
    return
  fi
  # Without a scheduler program its routes go to web, which answers 409 by contract.
  [[ ${SCHEDULER_AUTOSTART:-true} == true ]] || scheduler=whalefall_web
  cat <<EOT
include /etc/nginx/upstreams/one_container.conf;
map "" \$web_upstream {
    default whalefall_web;
}
map "" \$scheduler_upstream {
    default $scheduler;
}
EOT
}

# networks VARIABLE: sets `found` to the addresses and networks that it holds.
networks() {
  local network
  read -ra found <<< "${!1//,/ }"
  for network in ${found[@]+"${found[@]}"}; do
    [[ $network =~ ^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$ ]] ||
      refuse "$1 holds '$network'; accepted: IP addresses or networks such as 10.0.0.0/8, separated by commas"
  done
}

write_trusted_proxies() {
  local -a found proxies
  local proxy
  networks TRUSTED_PROXIES
  proxies=(${found[@]+"${found[@]}"})
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

write_metrics_networks() {
  local -a found
  local network
  networks METRICS_ALLOW
  {
    echo "geo \$from_metrics_network {"
    echo "    default 0;"
    for network in ${found[@]+"${found[@]}"}; do
      echo "    $network 1;"
    done
    echo "}"
  } > "$GENERATED/metrics_networks.conf"
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
  write_upstreams > "$GENERATED/upstreams.conf"
  TRUSTED_PROXIES=${TRUSTED_PROXIES-} write_trusted_proxies
  METRICS_ALLOW=${METRICS_ALLOW-} write_metrics_networks
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
