"""The fusion ablation: when should images come in pre-training? (source: K2.5 section 2.1, Table 1)"""

NAME = "fusion"
