import errno

import pytest

from llm.errors import Diverged, exit_code, Preempted, StorageError, UserError


@pytest.mark.parametrize('error, code', [
    (UserError('x'), 2), (Diverged('x'), 43), (StorageError('x'), 44), (Preempted('x'), 42),
    (OSError(errno.ENOSPC, 'full'), 44), (OSError(errno.EROFS, 'read-only'), 44), (OSError(errno.ESTALE, 'stale'), 44),
    (ConnectionResetError('reset'), 44), (TimeoutError('late'), 44),
    (FileNotFoundError(errno.ENOENT, 'none'), 2), (ValueError('a bug'), 1)])
def test_exit_code_of_an_error(error, code):
    assert exit_code(error) == code
