"""The table in docs/reference/whole-model.md: every row is a test, and what it says of DDP is so."""

import json
from pathlib import Path

import beside_ddp
import gradient_hooks
import pytest
import whole_module
from gradient_hooks import CASES as HOOKS
from jobs import PROGRAMS, Run, launcher
from whole_module import CASES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "whole-model.md"

ROWS: dict[str, list[str]] = {
    "frozen parameters and buffers": ["frozen_parameters_and_buffers_are_rank_0s", "ddp: frozen and buffers"],
    "running means of norms": ["norms_have_worker_0s_means", "ddp: running means"],
    "a part that you keep in evaluation mode": [
        "test_whole_module.test_a_look_puts_every_modules_mode_back",
        "ddp: evaluation mode",
    ],
    "a parameter that got no gradient from anybody": ["parameters_without_a_gradient", "ddp: no gradient"],
    "a parameter that got a gradient on some workers only": [
        "parameters_without_a_gradient",
        "blocks_that_a_batch_on_one_rank_does_not_use",
        "ddp: a gradient on some workers",
    ],
    "layers that are frozen and trained again later": [
        "layers_frozen_for_a_while",
        "frozen_for_a_while_on_one_rank_only",
        "ddp: frozen for a while",
    ],
    "a layer that is used several times, also under": [
        "a_layer_that_is_used_twice",
        "ddp: used twice",
        "ddp: used twice, checkpoint",
    ],
    "a layer that is used several times under reentrant": [
        "a_block_used_three_times_under_reentrant_checkpointing",
        "fewer_goes_than_before",
        "more_goes_in_another_micro_batch",
        "more goes later",
        "more goes later, on one rank",
        "ddp: used twice, reentrant",
    ],
    "`zero_grad()` in a loss": ["a_loss_that_removes_gradients", "an_optimiser_that_removes_gradients"],
    "`zero_grad()` after a backward of your own": ["a_backward_of_its_own"],
    "`zero_grad(set_to_none=False)`": ["erased gradients"],
    "`parameter.grad` that is replaced": ["a_gradient_that_was_replaced", "ddp: a replaced gradient"],
    "sparse gradients": ["sparse_gradients", "ddp: sparse gradients"],
    "`parameter.data` that is moved": [
        "values_that_were_moved",
        "an_optimiser_that_replaces_values",
        "test_whole_module.test_servers_refuse_parameters_that_they_would_undo",
    ],
    "parameters that share memory and are two": ["weights tied by .data", "a buffer that is a weight"],
    "an optimiser that fails in a step": ["an optimiser that cannot make a step"],
    "a weight that is cut": ["a weight that is cut"],
    "`share_memory()`": ["a model that is moved"],
    "a parameter or layer that is replaced": [
        "a parameter that was replaced",
        "a layer that was replaced",
        "a shared weight",
        "a late bias",
        "a late layer",
        "a late conversion",
        "a late thaw",
    ],
    "parameters that your loop changes": [
        "parameters_that_every_worker_changes_alike",
        "test_whole_module.test_servers_refuse_parameters_that_they_would_undo",
    ],
    "parameters that come apart": [
        "weights that a layer changes",
        "test_whole_module.test_workers_that_come_apart_are_found",
    ],
    "frozen parameters that change": [
        "a_frozen_parameter_that_all_workers_move_alike",
        "a codebook",
        "test_whole_module.test_a_frozen_parameter_that_every_worker_moves_by_its_own_data_is_found",
        "test_whole_module.test_a_trainer_goes_on_with_the_frozen_parameters_that_it_had",
    ],
    "buffers that workers add or change in shape": [
        "a buffer that grows",
        "test_whole_module.test_a_look_at_models_with_other_buffers_is_refused_on_every_worker",
    ],
    "a hook that changes a gradient": ["a late hook", "ddp: a hook"],
    "an error within backward": [
        "a backward that raises",
        "the last backward raises",
        "test_whole_module.test_nothing_is_trained_of_a_backward_that_failed",
    ],
    "parameters of size zero": [
        "other_dtypes_and_shapes",
        "tied_weights",
        "ddp: of size zero",
        "ddp: of no dimension",
        "ddp: shared by several layers",
        "ddp: not contiguous",
    ],
    "float64, float32, float16, bfloat16": ["half_precision", "ddp: float32", "ddp: float16", "ddp: bfloat16"],
    "complex numbers": ["complex numbers", "ddp: complex numbers"],
    "several dtypes in one model": ["mixed dtypes", "ddp: several dtypes"],
    "parameters on two devices, layers without a shape yet, nothing to train": [
        "a lazy layer",
        "nothing to train",
        "ddp: two devices",
        "ddp: without a shape",
        "ddp: nothing to train",
    ],
    "a model made under `inference_mode`": ["a model made for inference"],
    "dropout": ["test_whole_module.test_every_worker_drops_others"],
}
"""The beginning of each row, and what tests it.

A name with underscores is a case of `whole_module` or `gradient_hooks`, whose oracle is a plain loop; one with spaces
is what they refuse; "ddp: NAME" is a case of `beside_ddp`; and the others are tests.
"""

TOLERANCES = {"float32": 1e-6, "float16": 2e-2, "bfloat16": 1e-1}
"""How far rounding takes two trainings apart in these dtypes; in float64, 1e-11."""


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")][1:]


def test_every_row_of_the_table_is_here():
    assert len(rows()) == len(ROWS)
    for (first, *_), begins in zip(rows(), ROWS, strict=True):
        assert first.startswith(begins)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row):
    exact = {case.__name__ for case in (*CASES, *HOOKS)}
    refused = {*whole_module.REFUSED, *gradient_hooks.REFUSED}
    for name in ROWS[row]:
        if name.startswith("test_"):
            module, test = name.split(".")
            assert f"\ndef {test}(" in (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        elif name.startswith("ddp: "):
            assert name.removeprefix("ddp: ") in beside_ddp.CASES
        else:
            assert name in exact | refused


@pytest.mark.slow
def test_the_table_says_what_ddp_does(run: Run):
    """Two workers on gloo, against torch's own DistributedDataParallel, in one job for all rows."""
    outcome = run(*launcher("torchrun", 2), PROGRAMS / "beside_ddp.py", deadline=120)
    assert outcome.status == 0, outcome.err
    everything = json.loads(outcome.out)
    for (first, _, said), names in zip(rows(), ROWS.values(), strict=True):
        cases = [name.removeprefix("ddp: ") for name in names if name.startswith("ddp: ")]
        assert bool(said) == bool(cases), first
        for case in cases:
            found = everything.pop(case)
            if said.startswith("the same"):
                assert "`find_unused_parameters=True`" in said or not beside_ddp.CASES[case].options, case
                assert found.get("moved"), (case, found)
                assert found["distance"] <= TOLERANCES.get(case, 1e-11), (case, found)
            elif first.startswith("a layer that"):
                assert list(found) == ["ddp"], (case, found)
                assert "ready only once" in found["ddp"]
            else:
                assert sorted(found) == (["ddp", "ours"] if said == "refused" else ["ours"]), (case, found)
                assert found["ours"].startswith("ConfigurationError: "), (case, found)
    assert not everything, f"cases of no row: {everything}"
