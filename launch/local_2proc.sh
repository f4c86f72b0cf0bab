#!/usr/bin/env bash
# Several processes of one run on this machine, by default two:
#   launch/local_2proc.sh --config=configs/pcme_scenes.py --workdir=runs/two
# Started again after an interruption it goes on where the run stopped.
set -euo pipefail
export JCMR_INTERRUPTED_STATUS=75

processes="${PROCESSES:-2}"
export JAX_COORDINATOR_ADDRESS="${JAX_COORDINATOR_ADDRESS:-127.0.0.1:${PORT:-8476}}"
export JAX_NUM_PROCESSES="$processes"

children=()
for ((place = 0; place < processes; place++)); do
  JAX_PROCESS_ID="$place" "${PYTHON:-python}" -m jcmr.launch "$@" &
  children+=("$!")
done
# A signal to this script is one to every process: they save at the same step, then end.
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT

status=0
for child in "${children[@]}"; do
  # `wait` returns early when the trap runs; the child is then waited for again.
  while true; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if ((code != 0 && status == 0)); then
    status="$code"
    # What the others would wait for is gone.
    ((code == 75)) || kill -TERM "${children[@]}" 2>/dev/null || true
  fi
done
exit "$status"
