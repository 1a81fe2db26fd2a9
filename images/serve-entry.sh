#!/bin/sh
# The two commands of the serving image.
#   serve-entry checkpoint --uri URI --sha256 DIGEST --to FOLDER [--public-key PEM]    fetch and verify (init container)
#   serve-entry serve [SGLang's flags]                                                 serve /checkpoint
set -eu
what="${1:-}"
[ $# -eq 0 ] || shift
case "$what" in
checkpoint)
    cd /opt/moonflow # the folder that `components` is imported from
    exec venv/bin/python -m components.release.fetch "$@"
    ;;
serve)
    # Every answer then names the manifest of its weights in metadata.weight_version, which the serve check reads.
    digest="$(sha256sum /checkpoint/manifest.json)"
    # CHECKPOINT_SHA256 is what Git says is promoted, if the overlay's settings are given. The init container has compared every
    # file with it.
    if [ "${CHECKPOINT_SHA256:-${digest%% *}}" != "${digest%% *}" ]; then
        echo "serve-entry: /checkpoint/manifest.json has sha256 ${digest%% *}, but $CHECKPOINT_SHA256 was promoted" >&2
        exit 1
    fi
    # The options that the format of the checkpoint needs, for every shape; the caller adds the number of GPUs and nodes.
    # trust-remote-code: the processor code is part of the checkpoint, whose signature has been checked.
    exec sglang serve --model-path=/checkpoint --served-model-name=moonflow --trust-remote-code \
        --tool-call-parser=kimi_k2 --reasoning-parser=kimi_k2 --enable-metrics --weight-version="${digest%% *}" "$@"
    ;;
*)
    echo "serve-entry: give checkpoint or serve, not '$what'" >&2
    exit 2
    ;;
esac
