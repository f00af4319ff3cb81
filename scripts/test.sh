#!/usr/bin/env bash
# Sets up all that the tests need, and runs lint, types, unit and end-to-end tests.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly WORKERS=3
readonly VENV=.venv LOCK=requirements/test.txt

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [--lint] [--unit] [--e2e] [--faults] [-k EXPR]

Runs lint and types, unit tests and end-to-end tests; with one or more of the flags only those.
  --lint    ruff, mypy, shellcheck, hadolint, yamllint, and no registry's address in a tracked file
  --unit    the unit tests: no Docker
  --e2e     the end-to-end tests: builds the images, starts real stacks
  --faults  with the end-to-end tests also those faults that take longer than a minute each, and the soak
  -k EXPR   only tests whose names match (pytest's -k); no lint unless asked for
  --help    this text

Installs what is missing: the Python packages of requirements/test.txt in .venv; as root also Chromium and
Python's venv module; with CI=true as root also Docker Engine with Compose and buildx.
TEXT
}

# A Python that the lock serves; a name that exists may still not run (version managers leave such stubs).
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  die "no Python 3.11 or newer on this machine: install python3"
}

# The venv as the lock says; made anew when the lock or the Python changed.
set_up_venv() {
  local python wanted
  python=$(find_python)
  wanted=$("$python" -VV | cat - "$LOCK" | sha256sum | cut -d ' ' -f 1)
  if [[ -x $VENV/bin/python && $(cat "$VENV/lock.sha256" 2> /dev/null) == "$wanted" ]]; then
    return
  fi
  step "installing the Python packages of $LOCK in $VENV"
  rm -rf "$VENV"
  if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    is_root || die "Python's venv module is missing: apt-get install python3-venv"
    install_packages python3-venv
  fi
  "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --requirement "$LOCK" >&2
  echo "$wanted" > "$VENV/lock.sha256"
}

set_up_browser() {
  has chromium && return
  is_root || die "no chromium on this machine: apt-get install chromium"
  step "installing Chromium"
  # The pages are Chinese first: without a font their screenshots are boxes.
  install_packages chromium fonts-noto-cjk
}

# The engine, and the images as the tree is now.
set_up_images() {
  local may_install=false
  [[ ${CI-} != true ]] || may_install=true
  ensure_engine "$may_install"
  prepare_build "$may_install"
  # The stacks of the tests name their compose files themselves, whatever this checkout's own stack is.
  local shape
  for shape in prod ha; do
    COMPOSE_FILE=compose/docker-compose.$shape.yml:compose/docker-compose.observability.yml \
      POSTGRES_IMAGE='' VALKEY_IMAGE='' build_images
  done
}

# Shell scripts by their first line: not all have an extension. A link may point to a file that is not there yet.
shell_scripts() {
  git ls-files --cached --others --exclude-standard -z |
    xargs -0 grep -slIE --max-count=1 '^#!(/usr)?/bin/(env )?(ba|da)?sh' --
}

# Lock files hold no addresses, and images take their mirrors from the host. The brackets keep this file clean.
forbid_registry_hosts() {
  local hosts='p[y]pi\.org|p[y]thonhosted\.org|d[e]b\.debian\.org|security\.d[e]bian|snapshot\.d[e]bian'
  hosts+='|archive\.u[b]untu|security\.u[b]untu|ports\.u[b]untu|registry\.n[p]mjs|registry\.y[a]rnpkg'
  if git grep --untracked -nIE "$hosts" >&2; then
    step "the lines above name a package registry"
    return 1
  fi
}

lint() {
  local failed=()
  local -a scripts dockerfiles yaml
  mapfile -t scripts < <(shell_scripts)
  mapfile -t dockerfiles < <(git ls-files --cached --others --exclude-standard -- '*Dockerfile*')
  mapfile -t yaml < <(git ls-files --cached --others --exclude-standard -- '*.yml' '*.yaml')
  check() {
    step "$1"
    "${@:2}" >&2 || failed+=("$1")
  }
  check ruff ruff check .
  check "ruff format" ruff format --check .
  check mypy mypy
  check shellcheck shellcheck --external-sources "${scripts[@]}"
  check hadolint hadolint "${dockerfiles[@]}"
  check yamllint yamllint --strict "${yaml[@]}"
  check "registry hosts" forbid_registry_hosts
  if ((${#failed[@]})); then
    local IFS=,
    die "lint failed: ${failed[*]}"
  fi
}

main() {
  local lint='' unit='' e2e='' faults='' expression=''
  while (($#)); do
    case $1 in
      --lint) lint=yes ;;
      --unit) unit=yes ;;
      --e2e) e2e=yes ;;
      --faults) e2e=yes faults=yes ;;
      -k)
        (($# > 1)) || usage_error "-k needs an expression (--help tells more)"
        expression=$2
        shift
        ;;
      --help | -h)
        usage
        return
        ;;
      *) usage_error "unknown argument: $1 (--help tells more)" ;;
    esac
    shift
  done
  if [[ -z $lint$unit$e2e ]]; then
    unit=yes e2e=yes
    [[ -n $expression ]] || lint=yes
  fi

  set_up_venv
  PATH=$PWD/$VENV/bin:$PATH
  [[ -z $lint ]] || lint
  local -a folders=()
  [[ -z $unit ]] || folders+=(tests)
  if [[ -n $e2e ]]; then
    folders+=(e2e)
    set_up_browser
    set_up_images
  fi
  ((${#folders[@]})) || return 0
  # One pytest for both: one summary, and it is the last thing printed.
  local -a selected=(-m "not faults_long")
  [[ -z $faults ]] || selected=()
  # Most tests wait most of the time: several workers share the machine (conftest.py). A chosen few run in this process.
  [[ -n $expression ]] || selected+=(--numprocesses "$WORKERS" --no-loadscope-reorder)
  exec python -m pytest "${folders[@]}" "${selected[@]}" ${expression:+-k "$expression"}
}

main "$@"
