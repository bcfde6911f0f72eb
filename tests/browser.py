"""Headless Chromium over a pipe: opens a page, says what went wrong in it, measures it and takes its picture.

In: a local file, a width, light or dark. Out: errors, warnings and requests; values of expressions; PNG bytes.
Left out: any network: names resolve to nothing. The protocol is chromedevtools.github.io/devtools-protocol.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
_FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
          '--disable-background-networking', '--disable-component-update', '--host-resolver-rules=MAP * ~NOTFOUND',
          '--remote-debugging-pipe')
_PATIENCE_SECONDS = 60


class Browser(contextlib.AbstractContextManager):
    """One tab. Since the page was opened: `complaints`, errors, warnings and violations; `requests`, addresses."""

    def __init__(self):
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> 'Browser':
        self._profile = tempfile.TemporaryDirectory(prefix='chromium-', ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ['bash', '-c', command, 'bash', CHROMIUM, *_FLAGS, f'--user-data-dir={self._profile.name}', 'about:blank'],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._read, self._count, self._session = b'', 0, None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        return self

    def __exit__(self, *error) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def open(self, page: pathlib.Path, *, width: int, scheme: str) -> None:
        """Loads a page as a window of that many CSS pixels shows it, in 'light' or 'dark'."""
        self.complaints.clear()
        self.requests.clear()
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])
        self.call('Page.navigate', url=page.resolve().as_uri())
        while self._message().get('method') != 'Page.loadEventFired':
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page, where it is JSON."""
        answer = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def picture(self) -> bytes:
        """The whole page, as PNG."""
        return base64.b64decode(self.call('Page.captureScreenshot', captureBeyondViewport=True)['data'])

    def call(self, method: str, **parameters) -> dict[str, Any]:
        self._count += 1
        message = {'id': self._count, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while (answer := self._message()).get('id') != self._count:
            pass
        assert 'error' not in answer, answer
        return answer['result']

    def _message(self) -> dict[str, Any]:
        while b'\0' not in self._read:
            assert select.select([self._in], [], [], _PATIENCE_SECONDS)[0], 'Chromium says nothing'
            part = os.read(self._in, 1 << 20)
            assert part, 'Chromium ended'
            self._read += part
        line, _, self._read = self._read.partition(b'\0')
        message = json.loads(line)
        self._note(message.get('method'), message.get('params', {}))
        return message

    def _note(self, method: str | None, said: dict[str, Any]) -> None:
        if method == 'Network.requestWillBeSent':
            self.requests.append(said['request']['url'])
        elif method == 'Runtime.exceptionThrown':
            self.complaints.append(str(said['exceptionDetails']))
        elif method == 'Runtime.consoleAPICalled' and said['type'] in ('error', 'warning', 'assert'):
            self.complaints.append(str(said['args']))
        elif method == 'Log.entryAdded' and said['entry']['level'] in ('error', 'warning'):
            self.complaints.append(said['entry']['text'])
