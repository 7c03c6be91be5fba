"""`loss`: what training lowers, on the held-out cells.

loss                  of all objectives, each as often as it trains
OBJECTIVE/loss        of one
OBJECTIVE/METRIC      what else it tells, such as the negative log-likelihood of a modality
"""

from scmbert_jax.evaluators.inputs import EvaluatorInputs
from scmbert_jax.training.validation import Evaluator


def make(inputs: EvaluatorInputs) -> Evaluator:
    return inputs.losses
