"""What the library costs, each figure beside a floor that was measured in the same run.

``python -m tests.benchmarks [name ...] [--json FILE]``
"""
