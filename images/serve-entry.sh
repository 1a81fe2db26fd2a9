#!/bin/sh
# The two things the serving image does.
#   serve-entry checkpoint --uri URI --sha256 DIGEST --to FOLDER [--public-key PEM]    fetch and verify (init container)
#   serve-entry serve [SGLang's flags]                                                 serve /checkpoint
set -eu
what="${1:-}"
[ $# -eq 0 ] || shift
case "$what" in
checkpoint)
    cd /opt/moonflow # where `components` is imported from
    exec venv/bin/python -m components.serve.checkpoint "$@"
    ;;
serve)
    # Every answer then says in metadata.weight_version which manifest its weights are of; the serve check reads it.
    digest="$(sha256sum /checkpoint/manifest.json)"
    # What Git says is promoted, where the overlay's settings are given: the init container checked every file against it.
    if [ "${CHECKPOINT_SHA256:-${digest%% *}}" != "${digest%% *}" ]; then
        echo "serve-entry: /checkpoint/manifest.json has sha256 ${digest%% *}, but $CHECKPOINT_SHA256 was promoted" >&2
        exit 1
    fi
    # What the checkpoint's format asks for, in one place for every shape; how many GPUs and nodes is the caller's.
    # trust-remote-code: the processor code travels in the checkpoint, whose signature was checked.
    exec sglang serve --model-path=/checkpoint --served-model-name=moonflow --trust-remote-code \
        --tool-call-parser=kimi_k2 --reasoning-parser=kimi_k2 --enable-metrics --weight-version="${digest%% *}" "$@"
    ;;
*)
    echo "serve-entry: give checkpoint or serve, not '$what'" >&2
    exit 2
    ;;
esac
