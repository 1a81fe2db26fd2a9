"""A release: an exported checkpoint that is signed, registered and committed, so that others can fetch and serve it.

``promote`` makes releases, ``serve`` and ``moonflow promote --rollback`` read them; neither step imports the other.
From the top down:

- ``champion``: the registry's alias that follows what Git says is served.
- ``retrievable``: whether a release could be served now, found out without fetching its weights.
- ``fetch``: a release as a local folder, verified against Git's digest and its signature.
- ``gitops``: what each environment serves, as commits of the GitOps repository; promotions and rollbacks.
- ``history``: the promotions and rollbacks in that repository's commits.
- ``overlay``: the file in which a commit names the checkpoint that an environment serves.
- ``forge``: pull requests, on GitHub or Gitea, for the branches that need a review.
- ``registry``: the version of a release in MLflow's model registry, and its aliases.
- ``signing``: the signature over a release's files.
- ``git``: Git, run as a program.
- ``names``: which names models, aliases and environments may have.
"""
