#!/usr/bin/env bash
# On every worker of a TPU VM, for instance
#   gcloud compute tpus tpu-vm ssh NAME --worker=all \
#     --command='cd jcmr && launch/tpu_vm.sh --config=configs/pcme_coco.py --workdir=gs://.../run'
# or from a startup script, which runs again when a spot VM comes back. JAX finds the other workers.
# Interrupted runs (exit status 75) go on until they are done; a mistake ends in its own status.
set -euo pipefail
export JCMR_INTERRUPTED_STATUS=75

# shellcheck source=/dev/null
[[ -f launch/xla_flags.env ]] && source launch/xla_flags.env

while true; do
  status=0
  "${PYTHON:-python}" -m jcmr.launch "$@" || status=$?
  ((status == 75)) || exit "$status"
  sleep "${RETRY_SECONDS:-10}"
done
