"""Damage to a step on disk: python -m tools.faults.flips --trials=1000 --seed=0 --workdir=DIR [--json=FILE]

Two steps of a small train state are saved. In each trial something happens to the newer one, and the newest sound step
is restored. It must be, bit for bit, either the older one, with one line that names the refused step, or the newer one,
where the damage was to bytes that nothing is restored from. Nothing else is right: no other bits, no exception.

Trials: one flipped bit in any file of the step or in its manifest, uniformly over files and then over bits; and a fifth
as many other damages: truncated, deleted, zeroed and swapped files, half-copied folders, stale temporary ones.
Prints both figures, and exits with 1 unless every trial went right.
"""

import collections
from collections.abc import Callable
import pathlib
import random
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm.checkpoint import Checkpoints
from llm.errors import UserError
from llm.execution import MeshConfig
from llm.manifest import Manifest
from llm.sharding import make_mesh, replicated
from tools.faults import script

HOST = {'rate': 0.1, 'best': 1e300, 'position': 2**60 + 1}
REFUSED, HARMLESS = 'refused', 'harmless'


def items(step: int) -> dict[str, Any]:
    """A train state: matrices, small leaves, two dtypes, an optimizer's state, a key."""
    draw = np.random.default_rng(step)
    params = {'embed': jnp.asarray(draw.normal(size=(64, 16)), jnp.float32),
              'norm': jnp.asarray(draw.normal(size=(4, 16)), jnp.bfloat16)}
    opt_state = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), optax.adamw(1e-3).init(params))
    train = {'step': jnp.asarray(step, jnp.int32), 'key': jax.random.key(step)}
    place = replicated(make_mesh(MeshConfig(1, 1, 1)))
    return jax.device_put({'params': params, 'opt_state': opt_state, 'train': train}, place)


def bits(tree: Any) -> list[tuple[str, bytes]]:
    """Of every leaf its dtype and its bytes."""
    plain = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
             for leaf in jax.tree.leaves(tree)]
    return [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in plain]


def save_two_steps(folder: pathlib.Path) -> None:
    manifest = Manifest(stage='pretrain', identity='0' * 64, model={}, tokenizer={}, heads=['token'], reward=None,
                        objective='next token', data={}, seed=0, mesh={}, packages={}, git_commit='', parents={})
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, items(step), {**HOST, 'step': step}, manifest)


def trial(sound: pathlib.Path, damage: Callable[[pathlib.Path], None]) -> str:
    """What comes of damage to a copy of the two steps: `refused`, `harmless`, or what went wrong."""
    folder = shutil.copytree(sound, sound.with_name('damaged'))
    lines: list[str] = []
    try:
        damage(folder)
        with Checkpoints(folder, keep=2, say=lines.append) as checkpoints:
            result = checkpoints.restore(items(0))
        right = (result is not None and bits(result.items) == bits(items(result.step))
                 and result.host == {**HOST, 'step': result.step})
        if not right:
            return 'restored what was never saved'
        named = len(lines) == 1 and '@2 is refused' in lines[0] and '\n' not in lines[0]
        if result.step == 1:
            return REFUSED if named else f'fell back and said {lines}'
        return f'refused nothing and said {lines}' if lines else HARMLESS
    except UserError as error:
        return f'nothing was restored: {error}'
    except Exception as error:  # whatever it is, it should have become a line
        return f'{type(error).__name__}: {error}'
    finally:
        shutil.rmtree(folder)


def files(folder: pathlib.Path, *, manifest: bool) -> list[pathlib.Path]:
    """The files of the newer step that have any content."""
    found = sorted(path for path in (folder / '2').rglob('*') if path.is_file() and path.stat().st_size)
    return [*found, folder / '2.manifest.json'] if manifest else found


def flip(folder: pathlib.Path, draw: random.Random) -> None:
    path = draw.choice(files(folder, manifest=True))
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(folder: pathlib.Path, draw: random.Random) -> None:
    path = draw.choice(files(folder, manifest=True))
    path.write_bytes(path.read_bytes()[:draw.randrange(path.stat().st_size)])


def delete(folder: pathlib.Path, draw: random.Random) -> None:
    draw.choice(files(folder, manifest=False)).unlink()  # without its manifest a step is none: nothing to refuse


def zero(folder: pathlib.Path, draw: random.Random) -> None:
    path = draw.choice(files(folder, manifest=True))
    path.write_bytes(bytes(path.stat().st_size))


def swap(folder: pathlib.Path, draw: random.Random) -> None:
    """Two files of the step, or one of them and its like in the other step."""
    one, other = draw.sample(files(folder, manifest=False), 2)
    twin = folder / '1' / one.relative_to(folder / '2')
    if draw.random() < 0.5 and twin.exists():
        other = twin.rename(folder / 'twin')  # step 1 itself stays sound
        shutil.copy(other, twin)
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    if other.is_relative_to(folder / '2'):
        other.write_bytes(mine)


def copy_half(folder: pathlib.Path, draw: random.Random) -> None:
    """As a copy that was interrupted leaves it."""
    found = files(folder, manifest=False)
    for path in draw.sample(found, draw.randint(1, len(found))):
        path.unlink()


def leave_stale(folder: pathlib.Path, draw: random.Random) -> None:
    """As killed saves leave it: a temporary folder, an unsealed step, half a manifest."""
    for name in draw.sample(['3.orbax-checkpoint-tmp', '2.orbax-checkpoint-tmp-17', '3', '4'], 2):
        shutil.copytree(folder / '2', folder / name)
        copy_half_of = sorted(path for path in (folder / name).rglob('*') if path.is_file())
        for path in draw.sample(copy_half_of, len(copy_half_of) // 2):
            path.unlink()
    (folder / '3.manifest.json.unfinished').write_text((folder / '2.manifest.json').read_text()[:draw.randrange(99)])


DAMAGES = (truncate, delete, zero, swap, copy_half, leave_stale)


def trials(count: int, seed: int, workdir: pathlib.Path,
           damages: tuple[Callable, ...]) -> dict[str, collections.Counter]:
    """How many trials ended how, by damage, which take turns."""
    draw, sound = random.Random(seed), workdir / 'sound'
    if not sound.exists():
        save_two_steps(sound)
    ends: dict[str, collections.Counter] = {damage.__name__: collections.Counter() for damage in damages}
    for number in range(count):
        damage = damages[number % len(damages)]
        ends[damage.__name__][trial(sound, lambda folder: damage(folder, draw))] += 1
    return ends


def figure(count: int, seed: int, workdir: pathlib.Path) -> script.Figure:
    flipped = trials(count, seed, workdir, (flip,))
    damaged = trials(count // 5, seed, workdir, DAMAGES)
    lines, right = [], True
    for what, ends in (('one flipped bit', flipped), ('other damage', damaged)):
        total = sum((counter for counter in ends.values()), collections.Counter())
        fine = total[REFUSED] + total[HARMLESS]
        right = right and fine == total.total() > 0
        lines.append(f'{what}: {fine} of {total.total()} detected or harmless ({total[REFUSED]} fell back and said so, '
                     f'{total[HARMLESS]} were to bytes that nothing is restored from)')
    return '; '.join(lines), right, {'ends': flipped | damaged}


if __name__ == '__main__':
    sys.exit(script.run(__doc__, 1000, figure))
