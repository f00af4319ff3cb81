# How a script speaks: progress, warnings, and the one line in which it ends.
# shellcheck shell=bash

# Progress goes to stderr with the seconds since the start; stdout is for results. Said before what it tells of is done:
# FAIL_AT_STEP=N, which only tests set, ends the script like a power cut where it would begin its N-th step.
step() {
  step_number=$((step_number + 1))
  [[ ${FAIL_AT_STEP-} != "$step_number" ]] || kill -KILL "$BASHPID"
  printf '[%4ss] %s\n' "$SECONDS" "$*" >&2
}
step_number=0

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
