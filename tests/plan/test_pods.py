"""Names of pods become what the compiler knows: as many devices, of that kind, with that much memory."""

import jax
from jax.sharding import SingleDeviceSharding
import jax.numpy as jnp
import pytest

from configs import sizes
from llm.architecture import ModelConfig
from llm.chips import CHIPS, mfu, peak_flops
from llm.door import from_dict
from llm.errors import exit_code, UserError
from llm.execution import MeshConfig
from llm.model.transformer import train_flops_per_token
from llm.plan.compile import exceeded
from llm.plan.pods import names, pod
from llm.sharding import make_mesh

SMALLEST = ('v4-8', 'v5e-8', 'v5p-8', 'v6e-8', 'tpu7x-8')


@pytest.mark.parametrize('name, devices', [
    ('v4-8', 4), ('v5e-256', 256), ('v5p-128', 64), ('v5p-17920', 8960), ('v6e-256', 256), ('tpu7x-128', 128),
    ('2x v5e-256', 512), ('2xv5p-128', 128)])
def test_a_name_has_so_many_devices(name, devices):
    found = pod(name).devices()
    assert len(found) == pod(name).device_count == devices
    assert {device.device_kind for device in found} == {pod(name).chip.device_kind}
    assert len({getattr(device, 'slice_index', 0) for device in found}) == pod(name).slices


@pytest.mark.parametrize('sizes, shape', [((2, -1, 1), (2, 8, 1, 1)), ((4, 2, 2), (4, 2, 1, 2))])
def test_slices_are_parts_of_the_data_axis(sizes, shape):
    devices = pod('2x v5e-8').devices()
    mesh = make_mesh(MeshConfig(*sizes), devices)
    assert mesh.devices.shape == shape and set(mesh.devices.flat) == set(devices)
    for place, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {place // (shape[0] // 2)}


@pytest.mark.parametrize('sizes, data', [((1, -1, 1), 1), ((1, 8, 2), 1)])
def test_an_axis_of_fast_wires_over_slices_is_refused(sizes, data):
    with pytest.raises(UserError, match=f'data={data} does not split over 2 slices; use a multiple of 2'):
        make_mesh(MeshConfig(*sizes), pod('2x v5e-8').devices())


def test_every_name_in_the_table_says_how_many_devices_it_has():
    for name in names():
        size = int(name.split('-')[1])
        assert pod(name).device_count == (size // 2 if name.startswith(('v4', 'v5p')) else size), name


@pytest.mark.parametrize('name, line', [
    ('v5e-257', 'did you mean v5e-256?'), ('v5p-127', 'did you mean v5p-128?'), ('2x v5p-500', 'did you mean v5p-512?'),
    ('v5p', '--pod=v5p is not known'), ('h100-8', '--pod=h100-8 is not known'),
    ('0x v5e-8', '--pod=0x v5e-8 is not known')])
def test_an_unknown_name_costs_one_line(name, line):
    with pytest.raises(UserError) as refusal:
        pod(name)
    assert line in str(refusal.value)


@pytest.mark.parametrize('name', SMALLEST)
def test_the_compiler_refuses_what_the_table_says_does_not_fit(name):
    too_big = jax.ShapeDtypeStruct((2**18, 2**20), jnp.float32, sharding=SingleDeviceSharding(pod(name).devices()[0]))
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        jax.jit(lambda x: x * 2).lower(too_big).compile()
    need, limit = exceeded(str(refusal.value))
    assert need >= 1024
    assert limit == pytest.approx(pod(name).chip.hbm_gib, abs=0.01)


def test_other_errors_of_the_compiler_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(UserError, match='INTERNAL: something else; this says nothing of what fits') as refusal:
        exceeded('INTERNAL: something\nelse')
    assert exit_code(refusal.value) == 2


# A published measurement: Llama 3.1 8B on v6e, rows of 8,192 tokens, 7,207 tokens a second and chip.
@pytest.mark.parametrize('causal, share', [(False, 0.4547), (True, 0.4041)])
def test_mfu_is_that_of_a_published_run(causal, share):
    model = from_dict(ModelConfig, sizes.llama3_1_8b().to_dict())
    flops = train_flops_per_token(model, 8192, **({'scores_share': 0.5} if causal else {}))
    assert mfu(7207, flops, CHIPS['v6e'].flops_per_second) == pytest.approx(share, abs=5e-5)
    assert peak_flops('TPU v6 lite') == CHIPS['v6e'].flops_per_second and peak_flops('cpu') == 0
