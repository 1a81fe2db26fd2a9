"""The section of pipelines/README.md about a run that starts from a checkpoint."""

from __future__ import annotations

from pipelines.docs.markdown import table

INTRODUCTION = """\
The pipeline `post_train` needs no pre-training: it takes a checkpoint and runs the recipe from zero-vision SFT on.

    moonflow run --profile base && moonflow run --profile post_train --set import_checkpoint.source=runs/base
    moonflow run --profile post_train --set import_checkpoint.source=runs/tiny/mid_train
    moonflow run --profile post_train --set import_checkpoint.source=/weights/kimi   # a folder with config.json
    moonflow submit --profile post_train --set import_checkpoint.source=s3://bucket/runs/base \\
        --set task.visual_rl.launcher=trainjob --set task.joint_rl.launcher=trainjob \\
        --set task.parl.launcher=trainjob --set task.evaluate.launcher=trainjob --host URL --namespace NS

On a cluster, the steps that run programs of a model must be TrainJobs, whose pods have no Kubernetes token; `moonflow
submit` refuses others.

The step `import_checkpoint` looks what its `source` is:"""
SOURCES = [
    [
        "`runs/tiny`, `runs/tiny/mid_train`",
        "in `moonflow run` only: the newest complete checkpoint of another local run, or of one of its steps",
    ],
    [
        "`s3://bucket/runs/base`, also with `/<step>` or `/<step>/<index>`",
        "a checkpoint of ours; of a run or a step, the newest complete one. `file:///...` if the store is a folder",
    ],
    ["a folder, or an `s3://` prefix, with `config.json`", "a checkpoint in Hugging Face's form"],
    [
        "`hf://owner/name`",
        "the same from Hugging Face's Hub. `import_checkpoint.revision` names a branch, a tag or a commit; empty, the "
        "main branch. `HF_ENDPOINT` names a mirror, `HF_TOKEN` is a user's token, which tasks on a cluster do not get",
    ],
]
RULES = """\
- **What fits**: checkpoints of Kimi K2.5's architecture. Ranks that divide the experts (`expert_parallel`) build and
  load their own alone, each beside all other weights; but joint RL and PARL sample from a whole model in every process,
  and evaluation is one process. So Kimi K2.5 itself can run through no more than the supervised steps, has never done
  so, and its import has never been run. On a cluster the profile gives a task 1 CPU and 4 GiB, the import 12 GiB; for a
  larger model, copy it and set `[task.<step>]`.
- **Access**: `moonflow run` reads `s3://` sources, and `prepare_data.sources`, with the caller's own AWS variables or
  profile; a server other than AWS is named in `AWS_ENDPOINT_URL_S3`. Only the bucket `moonflow` is the run's own. In a
  folder, a link counts only if it leads to a file of the folder, or of the Hub's cache that the folder belongs to.
- **Data**: `prepare_data` takes over the checkpoint's tokenizer and image settings. `prepare_data.tokenizer_ranks` has
  no effect then, and `run.preset` is left out: the checkpoint has the shape. There is no pre-training, so of
  [your own data](../model/data/README.md#your-own-data) it trains only on what `zero_vision_sft.sources` gives a share.
- **Origin**: source, revision, sha256 and the names of the licence files are in the manifest of all that is made from
  the checkpoint, in the promotion's commit, in the model registry, and in the release, which is signed. The licence
  files themselves (`LICENSE`, `NOTICE` and the like) are among the files of the data, of every checkpoint and of the
  release. A source without one is imported with a warning.
- **Gate**: the first column of the scores is the imported checkpoint, measured on as many tasks as the candidate. It
  takes the place of the untrained model, with the champion's allowance: no suite may lose more than `evaluate.margin`,
  beyond the interval of `evaluate.sigmas`. The profile sets no floors: what they should be depends on the checkpoint.
- **Retries**: a killed import starts again from nothing. A complete one is not repeated, even if its source has a newer
  checkpoint by then. Another `source` under the same run is refused."""


def parts() -> list[str]:
    """The section's paragraphs in Markdown."""
    return [INTRODUCTION, table(["source", "what is taken"], SOURCES), RULES]
