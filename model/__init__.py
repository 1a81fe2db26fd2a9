"""The network, how it learns and how it is measured. Nothing here knows of Kubeflow, Kubernetes, MLflow or object
stores.

From the bottom up: ``boundary`` (errors and untrusted input), ``codec`` (text and media to tokens and patches),
``network``, ``checkpoint``, ``data``, ``optimizer``, ``plan``, ``parallel``, ``rollout``, ``train``, ``rl``, ``swarm``,
``evals``. A folder imports only from folders before it.
"""
