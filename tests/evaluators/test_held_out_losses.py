"""`loss` and `lift` of held-out cells: the same on any mesh, and a start that is no lift."""

from dataclasses import replace

import jax
import pytest
from conftest import shaken

from scmbert_jax.evaluators import lift, loss
from scmbert_jax.parallel.mesh import replicated
from scmbert_jax.training.train_state import initial_params


@pytest.mark.slow
def test_no_mesh_changes_the_losses_and_lift_is_what_they_fell_by(held_out_inputs):
    usual = held_out_inputs().config
    small = replace(usual, model=replace(usual.model, num_layers=1))
    found = []
    for devices in (1, 8):
        inputs = held_out_inputs(devices, small)
        evaluators = [module.make(inputs) for module in (loss, lift)]
        everywhere = replicated(inputs.mesh)
        with jax.set_mesh(inputs.mesh):
            start = initial_params(inputs.model, inputs.mesh)
            other = jax.device_put(shaken(jax.device_get(start)), everywhere)
            constants = jax.device_put(inputs.model.constants, everywhere)
            found.append(
                [dict(own(step, params, constants)) for step, params in enumerate((start, other)) for own in evaluators]
            )
    (first, no_lift, then, fell), on_eight = found
    assert set(no_lift.values()) == {0.0}
    assert set(fell) == {"loss", "masked_modeling/loss"}
    assert fell["loss"] == first["loss"] - then["loss"] != 0.0
    for own, there in zip((first, no_lift, then, fell), on_eight, strict=True):
        assert there == pytest.approx(own, rel=1e-5, abs=1e-5)
