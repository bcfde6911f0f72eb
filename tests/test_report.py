"""The page about a pipeline: what it says, what it leaves out and why, and that a browser is at peace with it."""

import dataclasses
import html
import json
import os
import re
import shutil

import pytest

from configs import base
from llm import main as main_lib
from llm import report
from llm.errors import UserError
from llm.main import guarded
from llm.manifest import write
from llm.report import appendix, chain, plots, sections
from llm.report.folder import Stage
from llm.run import Result, read_result
from tests import report_runs
from tests.browser import Browser, CHROMIUM
from tests.report_runs import FIGURES, HOSTILE, NAMES, write_runs
from tests.stages import exactness
from tools import report as tool

FILES = ('identity.json', 'result.json', 'metrics.jsonl', 'figures.json', 'samples.jsonl', 'data.json')


@pytest.fixture(scope='module')
def handmade(tmp_path_factory):
    """A workdir of four stages made by hand, and its page; copy it to change it."""
    workdir = tmp_path_factory.mktemp('handmade')
    report.write(workdir, write_runs(workdir), base.defaults())
    return workdir


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are left empty: drawing is what takes time."""
    monkeypatch.setattr(plots, '_svg', lambda draw, height: '<svg></svg>')


def text_of(page: str) -> str:
    """What a reader sees, in one line; without plots."""
    page = re.sub(r'<(style|svg)\b.*?</\1>', '', page, flags=re.DOTALL)
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', page)).split())


def written(workdir, folders) -> str:
    return report.write(workdir, folders, base.defaults()).read_text()


# What it says.

def test_every_stage_is_there_with_its_numbers_beside_the_yardsticks(handmade):
    said = text_of((handmade / 'report.html').read_text())
    for name in NAMES:
        _, before, after = report_runs.METRICS[name]
        assert f'{after:.3f} from {before:.3f} better' in said
    assert 'bits per byte, whole works, test split: 1.980 gzip 2.810 beaten byte trigram 2.800 beaten' in said
    assert 'right labels, clear, test split: 76.4 % TF-IDF + logistic 82.0 % not yet its parent 51.0 % beaten' in said
    assert 'from sft at step 300, judged by reward at step 300; learns from begin' in said
    assert 'kept step 32; stopped at 40, over-optimised: gold 0.58 -> 0.50 while' in said
    assert 'stages finished 4 of 4 better than the parent 4 of 4 yardsticks beaten 4 of 7' in said


@pytest.mark.parametrize('name', NAMES)
def test_every_measured_number_is_in_a_table(handmade, name):
    said = text_of((handmade / 'report.html').read_text())
    for group in ('bits_per_byte', 'answer_nats', 'choices', 'pairs', 'policies'):
        for row in FIGURES[name].get(group, {}).values():
            for key, value in row.items():
                if isinstance(value, float):
                    assert f'{value:.3f}' in said or f'{100 * value:.1f} %' in said or f'{value:.2f}' in said, key
                elif isinstance(value, int):
                    assert f'{value:,}' in said, key


def test_what_was_left_out_of_the_data_is_counted_by_reason(handmade):
    said = text_of((handmade / 'report.html').read_text())
    assert ('documents kept text kept duplicate overlap passages too short language rows tokens '
            'pretrain bible train 64 62 97.8 % 1 17 9,120 1,167,360') in said
    assert 'pretrain ptx_data.bible train 5 5 – – –' in said


def test_texts_of_models_are_texts(handmade):
    page = (handmade / 'report.html').read_text()
    assert ' '.join(HOSTILE.split()) in text_of(page) and 'film <b>that</b> never' in text_of(page)
    assert not re.search(r'<(script|img|iframe|link|object)\b', page)


def test_every_id_is_there_once_and_every_reference_finds_its_own(handmade):
    page = (handmade / 'report.html').read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_a_loss_that_weighs_chats_has_a_plot_of_its_own(tmp_path, undrawn):
    folder, captions = write_runs(tmp_path)['sft'], []
    for key in ('next_token', 'next_token_by_chat'):
        path = folder / 'metrics.jsonl'
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(''.join(json.dumps({key if name == 'next_token' and row['kind'] == 'train' else name: value
                                            for name, value in row.items()}) + '\n' for row in lines))
        captions.append([caption for caption, _ in sections.answer_curves(Stage(folder)).plots])
    assert set(captions[1]) - set(captions[0]) == {'Training loss, in which each chat weighs the same'}


def test_nothing_in_it_leads_elsewhere(handmade):
    page = (handmade / 'report.html').read_text()
    assert '://' not in page and '@import' not in page
    assert all(value.startswith('#') for value in re.findall(r'\b(?:href|src)="([^"]*)"', page))
    assert all(value.startswith('#') for value in re.findall(r'url\(([^)]*)\)', page))
    assert "default-src 'none'" in page


def test_same_files_make_the_same_bytes(handmade):
    before = (handmade / 'report.html').read_bytes()
    assert report.write(handmade, report.newest(handmade), base.defaults()).read_bytes() == before


# What it leaves out.

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('damage', ['gone', 'torn', 'other'])
def test_a_file_that_cannot_be_read_costs_no_more_than_its_part(tmp_path, undrawn, name, file, damage):
    folders = write_runs(tmp_path)
    path = folders[name] / file
    if damage == 'gone':
        path.unlink()
    elif damage == 'torn':
        path.write_text(path.read_text()[:-len(path.read_text()) // 3])
    else:
        path.write_text('[1, "two"]\n{"pairs": 3, "config": {"stage": "ppo"}, "kind": "evaluate"}\n')
    said = text_of(written(tmp_path, folders))
    for other in NAMES:
        if other != name:
            assert f'{report_runs.METRICS[other][2]:.3f} from {report_runs.METRICS[other][1]:.3f} better' in said


@pytest.mark.parametrize('file, word', [
    ('figures.json', 'not measured: figures were off (figures.rows=0)'), ('metrics.jsonl', 'nothing was logged yet'),
    ('samples.jsonl', 'no samples'), ('identity.json', 'its identity.json is not there or cannot be read'),
    ('result.json', 'not finished: at step 500 of 500')])
def test_what_is_missing_is_said_in_a_word(tmp_path, undrawn, file, word):
    folders = write_runs(tmp_path)
    (folders['pretrain'] / file).unlink()
    assert word in text_of(written(tmp_path, folders))


@pytest.mark.parametrize('odd', [
    {'config': 3}, {'config': {'stage': ['sft']}, 'name': ['x']}, {'config': {'stage': 'sft', 'data': 5}},
    {'config': {'stage': 'sft', 'data': {'sources': {'a': {}}}}}, {'config': {'stage': 'sft'}, 'parents': 'x'}])
def test_an_odd_identity_costs_its_stage_alone(tmp_path, undrawn, odd):
    folders = write_runs(tmp_path)
    (folders['sft'] / 'identity.json').write_text(json.dumps(odd))
    said = text_of(written(tmp_path, folders))
    for other in ('pretrain', 'reward', 'ppo'):
        assert f'{report_runs.METRICS[other][2]:.3f} from {report_runs.METRICS[other][1]:.3f} better' in said
    assert report.newest(tmp_path)['ppo'] == folders['ppo']


def test_an_odd_manifest_costs_the_facts_alone(tmp_path, undrawn):
    folders = write_runs(tmp_path)
    manifest = Stage(folders['pretrain']).manifest
    write(folders['pretrain'] / 'checkpoints', dataclasses.replace(manifest, model={}))
    said = text_of(written(tmp_path, folders))
    assert 'stages finished' not in said and '1.980 from 3.700 better' in said


def test_files_that_hold_what_nobody_expects_cost_their_part(tmp_path, undrawn):
    folders = write_runs(tmp_path)
    (folders['reward'] / 'figures.json').write_text('{"split": "test", "pairs": 3, "calibration": {"bins": 7}}')
    said = text_of(written(tmp_path, folders))
    assert said.count('a file of the run does not hold what was expected') == 2
    assert 'What it likes, and what it does not' in said


def test_a_stage_that_has_just_begun_is_shown(tmp_path, undrawn):
    folders = write_runs(tmp_path)
    for file in ('result.json', 'metrics.jsonl', 'figures.json', 'samples.jsonl', 'data.json'):
        (folders['ppo'] / file).unlink()
    shutil.rmtree(folders['ppo'] / 'checkpoints')
    said = text_of(written(tmp_path, folders))
    assert 'not finished: at step 0 of 40' in said and 'stages finished 3 of 4' in said


# Verdicts and differences.

@pytest.mark.parametrize('ours, theirs, better', [(1.0, 2.0, True), (2.0, 1.0, False), (2.0, 2.0, False)])
def test_fewer_bits_are_better_and_equal_ones_are_not(tmp_path, ours, theirs, better):
    folder = write_runs(tmp_path)['pretrain']
    works = {'bytes': 9, 'model': ours, 'gzip': theirs, 'kn_byte_trigram': None}
    (folder / 'figures.json').write_text(json.dumps({'split': 'test', 'bits_per_byte': {'works': works}}))
    assert [beaten for *_, beaten in chain.verdict(Stage(folder)).others] == [better]


@pytest.mark.parametrize('metric, before, after, better', [
    ('bits_per_byte', 2.0, 1.0, True), ('bits_per_byte', 1.0, 2.0, False), ('gold', 1.0, 2.0, True),
    ('reward', 2.0, 1.0, False), ('k_wise', 1.0, 1.0, False), ('gold', None, 1.0, False)])
def test_better_depends_on_the_metric(tmp_path, metric, before, after, better):
    folder = write_runs(tmp_path)['sft']
    (folder / 'result.json').write_text(json.dumps({'metric': metric, 'before': before, 'after': after, 'step': 1}))
    assert chain.card(Stage(folder)).better is better


@pytest.mark.parametrize('pairs, gap', [
    ({'0.5': 9, '1': 5, '2': 1}, '1'), ({'0.5': 9, '1': 0, '2': 0}, '0.5'), ({'2': 3, '1': 0}, '2'), ({'1': 0}, None)])
def test_verdict_is_of_the_largest_gap_up_to_1_that_has_pairs(tmp_path, pairs, gap):
    folder = write_runs(tmp_path)['reward']
    made = {name: {'pairs': count, 'model': .6 if count else None, 'ridge': .5} for name, count in pairs.items()}
    (folder / 'figures.json').write_text(json.dumps({'split': 'test', 'pairs': made}))
    verdict = chain.verdict(Stage(folder))
    assert (verdict and verdict.what) == (gap and f'right order, ratings more than {gap} apart, test split')


@pytest.mark.parametrize('late_from_step, stop_step, expected', [
    (0, 100, 'a 75\u00a0%, b 25\u00a0%'), (50, 50, 'a 75\u00a0%, b 25\u00a0%'),
    (50, 100, 'a 75\u00a0%, b 25\u00a0%; after step 50 from b 75\u00a0%, a 25\u00a0%')])
def test_card_tells_the_mixtures_schedule(late_from_step, stop_step, expected):
    data = base.data(b=base.source(late_weight=9.0), a=base.source(weight=3.0))
    data.late_from_step = late_from_step
    assert chain.sources({'data': data.to_dict(), 'stop_step': stop_step}) == expected


def config_stage(tmp_path, config: dict) -> Stage:
    (tmp_path / 'identity.json').write_text(json.dumps({'name': 'mine', 'config': config}))
    return Stage(tmp_path)


def test_a_config_at_its_defaults_differs_in_nothing(tmp_path):
    stage = config_stage(tmp_path, base.defaults()['sft'])
    assert appendix.differences([stage], defaults=base.defaults()).absent


def test_each_changed_key_is_named_with_both_values(tmp_path):
    config = base.sft()
    config.optim.learning_rate = 0.5
    config.samples.prompts = ('a', 'b')
    config.data = base.data(mine=base.source(jsonl='x.jsonl', weight=0.25))
    config.init_from = 'stage:x'
    part = appendix.differences([config_stage(tmp_path, config.to_dict())], defaults=base.defaults())
    assert part.table.head == ['key', 'base', 'mine']
    assert sorted(part.table.rows) == [['data.sources.mine', '–', 'jsonl x.jsonl, weight 0.25'],
                                       ['optim.learning_rate', '0.001', '0.5'], ['samples.prompts', '[]', '["a", "b"]']]


def test_stages_with_other_defaults_of_a_key_have_rows_of_their_own(tmp_path):
    stages = []
    for name in ('sft', 'ppo'):
        (tmp_path / name).mkdir()
        config = {'sft': base.sft, 'ppo': base.ppo}[name]()
        config.seq_len = 64
        stages.append(config_stage(tmp_path / name, config.to_dict() | {'stage': name}))
    part = appendix.differences(stages, defaults=base.defaults())
    assert [row[:2] for row in part.table.rows] == [['seq_len', '112'], ['seq_len', '128']]


@pytest.mark.parametrize('prompt, asked, begun', [
    ('<|bos|><|user|>Write.<|assistant|>The plot', 'Write.', 'The plot'), ('ROMEO. ', 'ROMEO. ', ''),
    ('<|bos|><|system|>Be brief.<|user|>a < b?<|assistant|>', 'Be brief. a < b?', '')])
def test_prompts_are_shown_without_the_marks_of_the_template(prompt, asked, begun):
    assert sections.spoken(prompt) == (asked, begun)


# Which runs.

def test_newest_run_of_each_name_is_taken_parents_first(tmp_path):
    folders = write_runs(tmp_path)
    for number, (name, suffix) in enumerate((('sft', 'new'), ('ppo', 'old'), ('sft', 'x.replaced-1'))):
        copy = shutil.copytree(folders[name], tmp_path / f'{name}-{suffix}')
        for file in copy.glob('*.json*'):
            os.utime(file, (2e9, 2e9) if number != 1 else (1, 1))
    assert report.newest(tmp_path) == folders | {'sft': tmp_path / 'sft-new'}
    assert list(report.newest(tmp_path)) == list(NAMES)


def test_a_folder_without_runs_costs_one_line(tmp_path):
    with pytest.raises(UserError, match='holds no run; name the workdir of a pipeline'):
        report.newest(tmp_path / 'nowhere')


def test_tool_makes_the_page_of_a_real_pipeline(finished_pipeline, tmp_path, monkeypatch, capsys):
    workdir = shutil.copytree(finished_pipeline, tmp_path / 'runs')
    monkeypatch.setattr('sys.argv', ['report', str(workdir)])
    assert guarded(tool.main) == 0
    assert capsys.readouterr().out.strip() == str(workdir / 'report.html')
    said = text_of((workdir / 'report.html').read_text())
    assert 'stages finished 4 of 4' in said and 'does not hold what was expected' not in said


def test_main_ends_with_the_page(tmp_path, undrawn, monkeypatch, capsys):
    folders = write_runs(tmp_path)
    done = {name: (folder, Result(**report_runs.result(name))) for name, folder in folders.items()}
    monkeypatch.setattr(main_lib, 'parse', lambda argv: None)
    for name, value in (('WORKDIR', str(tmp_path)), ('RERUN', None), ('COORDINATOR', None), ('PROCESSES', None),
                        ('PROCESS', None)):
        monkeypatch.setattr(main_lib, name, type('Flag', (), {'value': value}))
    monkeypatch.setattr(main_lib, 'run_pipeline', lambda *args, **keywords: done)
    main_lib.main([])
    assert capsys.readouterr().out.splitlines()[-1] == f'report  {tmp_path / "report.html"}'
    assert (tmp_path / 'report.html').exists()


@pytest.mark.parametrize('name', exactness.NAMES)
def test_phases_of_a_real_run_add_up_to_its_seconds(finished_pipeline, name):
    result = read_result(exactness.folder_of(name, finished_pipeline))
    assert sum(result.phases.values()) == pytest.approx(result.seconds)
    own = {'rollout', 'score', 'update'} if name == 'ppo' else set()
    assert {'data', 'compile', 'train', 'wait', 'evaluate', 'save', 'samples'} | own <= set(result.phases)


# Plots.

@pytest.mark.parametrize('svg', [
    plots.lines({'a': ([0, 1, 2], [1.0, None, 3.0]), 'b $x$ <i>': ([1], [2.0])}, 'x', 'y', faint=['a'],
                mark=(1, 'kept')),
    plots.dots({'one': {'a': 1.0, 'b': None}, 'two': {'a': 2.0}}, 'x'),
    plots.reliability({'a': ([], []), 'b': ([.5], [.6])}), plots.bars({'one': {'a': 1.0}, 'two': {}}, 'x'),
    plots.lines({str(n): ([0, 1], [n, n]) for n in range(20)}, 'x', 'y')])
def test_plot_has_the_pages_colours_and_nothing_that_could_clash(svg):
    assert svg.startswith('<svg viewBox=') and svg.endswith('</svg>')
    assert not re.search(r':\s*#[0-9a-f]{6}|<style|<metadata|font-family|://', svg)
    ids, named = re.findall(r' id="([^"]+)"', svg), re.findall(r'#([\w.-]+)', svg)
    assert set(ids) == set(named) and len(ids) == len(set(ids))
    assert 'nan' not in svg.lower()


def test_every_line_and_row_is_drawn():
    many = {f'line {number}': ([0, 1], [number, number]) for number in range(20)}
    for svg in (plots.lines(many, 'x', 'y'), plots.dots({name: {'a': 1.0} for name in many}, 'x')):
        assert all(f'>{name}<' in svg for name in many)


# In a browser.

@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        assert os.environ.get('CI') != 'true', 'Chromium is not installed; .ci/run installs it'
        pytest.skip('Chromium is not installed; on Debian: apt-get install chromium')
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [375, 1280])
def test_browser_has_nothing_to_complain_about_and_nothing_to_fetch(browser, handmade, width, scheme):
    page = handmade / 'report.html'
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert browser.value('document.documentElement.scrollWidth') <= width
    wide = browser.value('''[...document.querySelectorAll('main *')].filter(element =>
        !element.closest('.scroll, svg') && element.getBoundingClientRect().right > innerWidth + 1).length''')
    assert wide == 0
    luminance = browser.value('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[1]')
    assert (luminance > 128) == (scheme == 'light')
    assert len(browser.picture()) > 100_000


def test_browser_finds_plots_readable_on_a_phone(browser, handmade):
    browser.open(handmade / 'report.html', width=375, scheme='light')
    pixels = browser.value('''const scale = ({a, b}) => Math.hypot(a, b);
        Math.min(...[...document.querySelectorAll('svg text')].map(
        text => parseFloat(getComputedStyle(text).fontSize) * scale(text.getScreenCTM())))''')
    assert pixels >= 8


@pytest.mark.parametrize('markup, complaint', [
    ('<script>console.error("x")</script>', 'Content Security Policy'),
    ('<img src="https://example.org/x.png">', 'Content Security Policy'),
    ('<p style="width: 2000px">x</p>', None)])
def test_browser_would_find_what_is_wrong(browser, handmade, tmp_path, markup, complaint):
    page = tmp_path / 'report.html'
    page.write_text((handmade / 'report.html').read_text().replace('<main>', f'<main>{markup}'))
    browser.open(page, width=375, scheme='light')
    if complaint:
        assert any(complaint in said for said in browser.complaints)
    else:
        assert browser.value('document.documentElement.scrollWidth') > 375


def test_a_sample_is_read_whole_whatever_stands_in_it(tmp_path):
    """Line ends of Unicode that are none of JSON lines', and a line torn while it was written."""
    rows = [{'answer': f'one{end}two'} for end in ('\x85', '\u2028', '\x1c', '\n', '\r')]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / 'samples.jsonl').write_text('\n'.join([*lines, lines[0][:-4]]), 'utf-8')
    assert Stage(tmp_path).samples == rows
