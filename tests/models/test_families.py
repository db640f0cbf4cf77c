import subprocess
import sys

import pytest
import torch

from basis_sharing.models.detect import detect_family
from basis_sharing.models.families import FAMILIES, family_of
from basis_sharing.models.family import ROLES
from pico import PICO

DECLARED = ["llama", "mistral", "opt", "gpt2", "qwen2", "qwen3", "gemma3", "phi3"]


def test_model_types_are_unique():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert family_of("llama").name == "llama"
    assert family_of("gpt_neox") is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_roles_are_known_and_declared_once(family):
    roles = [role for members in family.inputs.values() for role in members]
    assert len(roles) == len(set(roles))
    assert set(roles) <= set(ROLES)
    assert set(family.shared_roles) <= set(roles)


def test_only_gemma_needs_the_first_token():
    assert {family.name for family in FAMILIES if family.needs_bos} == {"gemma"}


@pytest.mark.parametrize("name", DECLARED)
def test_probe_finds_the_declared_inputs(name):
    torch.set_num_threads(1)
    model = PICO[name]()
    declared, detected = family_of(model.config.model_type), detect_family(model)
    assert detected.blocks == declared.blocks
    assert {k: dict(v) for k, v in detected.inputs.items()} == {k: dict(v) for k, v in declared.inputs.items()}


def test_every_declared_family_is_tried_by_the_probe_test():
    assert {family_of(PICO[name]().config.model_type).name for name in DECLARED} == {f.name for f in FAMILIES}


def test_importing_families_does_not_import_torch():
    code = "import sys, basis_sharing.models.families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
