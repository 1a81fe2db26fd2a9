"""The section of pipelines/README.md about steps that sample with SGLang."""

from __future__ import annotations

TEXT = """\
`visual_rl`, `joint_rl`, `parl`, `evaluate` and the check of `serve` generate in their own process, or ask SGLang
0.5.23:

    moonflow run --set joint_rl.engine=sglang --set joint_rl.endpoints=http://127.0.0.1:30000,http://127.0.0.1:30001

- **Endpoints** are addresses with commas between. A name with several IPv4 addresses, such as a headless Service,
  stands for a replica at each of them, and is looked up again while the step runs. A Service with a virtual address
  does not do: only one of its pods would get the weights. If the servers want a key, `MOONFLOW_ENGINE_KEY` is set
  to it, on a cluster in the Secret `moonflow-server-keys`.
- **Weights**: the step writes a checkpoint in float32 after each round, and `/update_weights_from_disk` makes every
  replica load it. `weights_folder` is a volume that the step and the replicas have under the same path; on one
  machine it can stay empty. The folder is removed at the end of the step. The replicas must have a checkpoint of
  the same shape at their start.
- **`max_staleness`** above 0 lets the replicas sample while the step updates the weights, which then runs in one
  process. They get new ones in the middle of generations, which SGLang breaks off; what is missing is asked for
  again, with the tokens so far.
  [When that pays](../model/rl/README.md#rollouts-while-the-update-runs).
- **Start the replicas** with `--trust-remote-code`, `SGLANG_VLM_CACHE_SIZE_MB=0` (else they see known images with
  old weights) and, for the same samples from the same seeds, `--enable-deterministic-inference`.
- **`parl` and `evaluate`** have a second engine, for a swarm's frozen sub-agents: `sub_agent_endpoints` names
  replicas for it, others than those of `endpoints`; without them the step itself speaks for the sub-agents.
- **`evaluate`** gives each checkpoint to the replicas before it is measured. **`serve`** gives them nothing: it
  waits until each replica of the environment answers its question from the promoted weights.
- **Videos**, which SGLang does not take for this model, are passed over with a warning.

A request goes to the replica with the fewest requests under way. A replica that fails after the calls were
repeated, or whose health checks fail, is dropped, and its requests go to the others; what it may still answer is
ignored. It is asked again once it has been given the weights of now. Without any replica for ten minutes, the step
ends with one line that says why.

What is proven of a replica before it is asked, and again after each round: it calls its weights by the SHA-256 of
the pushed files; SGLang's digest of each of its parameters is the same on all replicas; and on a CPU in float32,
where that digest is a SHA-256 too, each is that of the tensors which were pushed. On a GPU this last part is not
proven: there the step's metric `rollout/mismatch_kl` shows what is left between trainer and sampler. It is measured
before a round's first update, over the tokens that the newest weights sampled; with `max_staleness` above 0 these
are some of a round's tokens, or none, and then the metric is left out. Every answer names its weights, and one from
other weights is ignored."""
