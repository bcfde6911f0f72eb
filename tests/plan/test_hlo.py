"""Arithmetic and bytes of small programs against numbers worked out by hand, as the CPU and as the TPU compile them."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from configs import sizes
from llm.architecture import ModelConfig
from llm.door import from_dict
from llm.execution import MeshConfig
from llm.model import splash
from llm.plan import hlo
from llm.plan.hlo_text import group_size
from llm.plan.pods import pod
from llm.sharding import AxisRules, make_mesh
from tests import tiny


@pytest.fixture(params=['cpu', 'tpu'])
def mesh(request) -> Mesh:
    devices = jax.devices() if request.param == 'cpu' else pod('v5e-8').devices()
    return Mesh(np.array(devices).reshape(2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)


def counted(mesh: Mesh, function, *shapes, spec=P(), **how) -> tuple[hlo.Counts, hlo.Counts]:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape in shapes]
    with jax.set_mesh(mesh):
        return hlo.count(jax.jit(function).lower(*arguments).compile().as_text(), **how)


def test_a_matmul_in_a_loop_counts_once_for_each_trip(mesh):
    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    done, decode = counted(mesh, loop, (256, 128), (7, 128, 128))
    assert done.flops == 7 * 2 * 256 * 128 * 128
    assert decode == hlo.Counts()


@pytest.mark.parametrize('equation, shapes, products', [
    ('bij,bjk->bik', ((16, 128, 64), (16, 64, 256)), 16 * 128 * 64 * 256),
    ('bihd,bjhd->bhij', ((2, 64, 8, 32), (2, 128, 8, 32)), 2 * 64 * 8 * 32 * 128),
    ('ij,jk->ki', ((128, 512), (512, 64)), 128 * 512 * 64)])
def test_batches_and_transpositions_add_nothing(mesh, equation, shapes, products):
    done, _ = counted(mesh, lambda x, y: jnp.einsum(equation, x, y), *shapes)
    assert done.flops == 2 * products


def test_what_a_loop_that_data_ends_does_counts_as_often_as_it_may(mesh):
    def decode(x, w):
        x = x @ w
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 5, lambda x: jnp.tanh(x @ w), x)
    before, within = counted(mesh, decode, (128, 128), (128, 128), most_trips=9)
    assert (before.flops, within.flops) == (2 * 128**3, 9 * 2 * 128**3)


def test_of_loops_that_data_ends_the_inner_one_counts_once_in_each_trip(mesh):
    def refill(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 3, lambda x: jnp.sin(x @ w), x)

    def decode(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 5, lambda x: refill(jnp.tanh(x @ w), w), x)
    before, within = counted(mesh, decode, (128, 128), (128, 128), most_trips=9)
    assert (before.flops, within.flops) == (0, 9 * 2 * 2 * 128**3)


def test_of_branches_the_one_with_the_most_work_counts(mesh):
    def one_of_three(x, w):
        narrow, wide = (lambda x, size=size: jnp.pad(x[:size] @ w, ((0, 256 - size), (0, 0))) for size in (64, 256))
        return jax.lax.switch((jnp.sum(x) > 0).astype(int) + (jnp.max(x) > 1), [narrow, wide, jnp.sin], x)
    done, within = counted(mesh, one_of_three, (256, 128), (128, 128))
    assert done.flops == 2 * 256 * 128 * 128 and within == hlo.Counts()


SIZE = 64 * 1024 * 4  # bytes of a device's part


@pytest.mark.parametrize('kind, collective, expected', [
    # Four devices in a group: three quarters of the whole come from others.
    ('all-gather', lambda x: jax.lax.all_gather(x, 'b'), SIZE * 4 * 3 / 4),
    ('all-gather', lambda x: jax.lax.all_gather(x, ('a', 'b')), SIZE * 8 * 7 / 8),
    ('reduce-scatter', lambda x: jax.lax.psum_scatter(x, 'b', tiled=True), SIZE * 3 / 4),
    ('all-to-all', lambda x: jax.lax.all_to_all(x, 'b', 0, 0, tiled=True), SIZE * 3 / 4),
    ('collective-permute', lambda x: jax.lax.ppermute(x, 'b', [(n, (n + 1) % 4) for n in range(4)]), SIZE),
])
def test_bytes_on_the_wire_by_kind(mesh, kind, collective, expected):
    def everywhere(x):
        return jax.shard_map(collective, in_specs=P(('a', 'b')), out_specs=P(('a', 'b')), check_vma=False)(x)
    done, _ = counted(mesh, everywhere, (64 * 8, 1024), spec=P(('a', 'b')))
    assert done.wire_bytes == {kind: expected}


def test_a_sum_for_all_counts_twice_and_in_a_loop_for_each_trip(mesh):
    def everywhere(x):
        def body(x, _):
            return jax.lax.psum(jnp.tanh(x), 'b') * 0.5, None
        return jax.shard_map(lambda x: jax.lax.scan(body, x, length=5)[0], in_specs=P(('a', 'b')),
                             out_specs=P(('a', 'b')), check_vma=False)(x)
    done, _ = counted(mesh, everywhere, (64 * 8, 1024), spec=P(('a', 'b')))
    assert done.wire_bytes == {'all-reduce': 5 * 2 * SIZE * 3 / 4}


@pytest.mark.parametrize('said, size', [
    ('replica_groups={{0,1,2},{3,4,5}}, x', 3), ('replica_groups=[4,16]<=[64], x', 16),
    ("replica_groups=mesh['x'=8,'y'=4] {'x'}, z={}", 8), ("replica_groups=mesh['x'=8,'y'=4] {'x','y'}", 32),
    ("replica_groups=mesh['x'=8] {'x':(1)2}", 2), ('source_target_pairs={{0,1}}', 0)])
def test_groups_are_read_in_every_spelling(said, size):
    assert group_size(said) == size


def test_a_sum_over_slices_leaves_them_once_for_each_half_that_stays():
    """Of two slices' sum each device sends its half of the terms, and then its half of the sum."""
    mesh = make_mesh(MeshConfig(2, 8, 1), pod('2x v5e-8').devices())

    def everywhere(x):
        return jax.shard_map(lambda x: jax.lax.psum(x, 'data'), in_specs=P('fsdp'), out_specs=P('fsdp'),
                             check_vma=False)(x)
    done, _ = counted(mesh, everywhere, (64 * 8, 1024), spec=P('fsdp'), slices=2)
    assert done.dcn_bytes == SIZE and not done.wire_bytes


@pytest.mark.parametrize('backward', [False, True])
def test_arithmetic_of_the_attention_kernel(backward):
    """Two matmuls forward; three for the gradient of queries and four for that of keys and values, scores among them.
    Of T queries the t-th meets t keys."""
    batch, length, width = 2, 512, 128
    model = from_dict(ModelConfig, sizes.llama3_1_8b().to_dict())
    mesh = make_mesh(MeshConfig(1, 1, 1), pod('v5e-8').devices())

    def attended(q_BTNH, k_BSKH, v_BSKH):
        return splash.attend(q_BTNH, k_BSKH, v_BSKH, None, causal=True, config=model,
                             rules=AxisRules.from_config(tiny.EXEC.rules)).sum()
    function = jax.grad(attended, (0, 1, 2)) if backward else attended
    done, _ = counted(mesh, function, (batch, length, 4, width), *[(batch, length, 2, width)] * 2)
    products = sum(range(1, length + 1)) * batch * 4 * width
    assert done.flops == done.kernel_flops == (2 + 7 * backward) * 2 * products
