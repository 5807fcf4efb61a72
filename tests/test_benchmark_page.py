"""``classpruning benchmark --report``: one page, complete in itself, that works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tiny import classpruning, dense, write_pictures

from basicsr_classpruning.benchmark import page as benchmark_page
from basicsr_classpruning.cli import main
from basicsr_classpruning.safe_files import save_file

NAME = 'a <b>&"x" $1_2$'


class Elements(HTMLParser):
    """Collects a page's elements as (name, attributes), its text, and fails where elements are not closed."""

    VOID = ('meta', 'img', 'input', 'path', 'use', 'rect', 'br')

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = '', []
        self.feed(page)
        assert not self._open, f'not closed: {self._open}'

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.found if name == tag and attributes.items() <= found.items()]


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """Checkpoints of a denoiser, and three pictures, one with a name that has to be escaped."""
    root = tmp_path_factory.mktemp('page')
    net = classpruning('DnCNN')
    save_file({'params': net.state_dict(), 'network_g': net.options}, root / 'pruned.pth')
    save_file({'params': dense('DnCNN').state_dict(), 'network_g': net.options['base']}, root / 'dense <i>.pth')
    write_pictures(root / 'gt', count=3, height=48, width=64)
    (root / 'gt/0.png').rename(root / f'gt/{NAME}.png')
    return root


def page_of(files: Path, target: Path, *argv: str, models=('pruned.pth', 'dense <i>.pth')) -> str:
    fixed = ['--gt', f'{files}/gt', '--degrade', 'noise25-25', '--tile', '32', '--repeats', '1', '--threads', '1']
    models = [str(files / name) for name in models]
    status = main(['benchmark', '--models', *models, *fixed, '--backend', 'dense', *argv, '--report', str(target)])
    assert status == 0
    return target.read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def page(files) -> Path:
    page_of(files, files / 'report.html', '--budgets', '0.7', '0.9', '--json', str(files / 'report.json'))
    return files / 'report.html'


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix('data:image/webp;base64,'))))


def test_the_page_holds_everything(page):
    elements = Elements(page.read_text(encoding='utf-8'))
    rows = json.loads(page.with_suffix('.json').read_text())['rows']
    assert len(elements.all('tr')) == 1 + len(rows)
    assert len(elements.all('tr', **{'class': 'shown'})) == 1
    for row in rows:
        assert f'{row["psnr"]:.3f}' in elements.text
    assert len(elements.all('svg')) == 1
    assert len(elements.all('input', type='range')) == 3
    addresses = [found['src'] for found in elements.all('img')]
    assert len(addresses) == 9
    assert {picture(address).size for address in addresses} == {(64, 48)}
    assert len(set(addresses)) == 9
    assert 'pruned, budget 0.7' in elements.text
    assert 'torch' in elements.text


def test_nothing_is_fetched_from_elsewhere(page):
    for _, attributes in Elements(page.read_text(encoding='utf-8')).found:
        for name in ('src', 'href', 'xlink:href', 'srcset', 'action'):
            value = attributes.get(name)
            assert value is None or value.startswith(('data:image/', '#'))
    assert '@import' not in page.read_text(encoding='utf-8')


def test_names_are_escaped(page):
    elements = Elements(page.read_text(encoding='utf-8'))
    assert NAME in elements.text
    assert 'dense <i>' in elements.text
    assert NAME in [found['alt'].rpartition(',')[0] for found in elements.all('img')]
    assert not elements.all('b', x='')
    assert len(elements.all('b')) == 1  # the template's own


def test_what_is_left_out_is_said(files, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_page, 'MOST_PICTURES', 2)
    monkeypatch.setattr(benchmark_page, 'LONGEST_SIDE', 32)
    elements = Elements(page_of(files, tmp_path / 'x.html', '--candidates', '2:4', models=('pruned.pth',)))
    assert 'The first 2 of 3 pictures.' in elements.text
    assert 'more than 32 pixels a side are shown smaller' in ' '.join(elements.text.split())
    assert {picture(found['src']).size for found in elements.all('img')} == {(32, 24)}
    assert '2:4: 100 % of the tiles' in elements.text


def test_dense_networks_have_no_class_map(files, tmp_path):
    elements = Elements(page_of(files, tmp_path / 'x.html', models=('dense <i>.pth',)))
    assert len(elements.all('img')) == 6
    assert 'of the tiles' not in elements.text


def test_a_page_that_cannot_be_written_leaves_the_old_one(files, tmp_path, capsys, monkeypatch):
    target = tmp_path / 'x.html'
    target.write_text('old')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    arguments = ['--models', str(files / 'dense <i>.pth'), '--gt', f'{files}/gt', '--degrade', 'noise25-25']
    assert main(['benchmark', *arguments, '--threads', '1', '--repeats', '1', '--report', str(target)]) == 1
    assert 'x.html: could not be written: No space left on device' in capsys.readouterr().err
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, its log of requests kept."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    chromium, driver = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
    if not chromium or not driver:
        pytest.skip('no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        'headless', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', 'disable-quic', 'no-first-run',
        'disable-background-networking', 'disable-component-update', 'disable-sync', f'user-data-dir={tmp_path}/user',
    ):  # fmt: skip
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_window_size(1280, 1000)
    yield browser
    browser.quit()


def test_in_a_browser(browser, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get('about:blank')
    browser.get_log('performance')  # of Chromium's own start page
    browser.get(page.as_uri())
    slider, *others = browser.find_elements(By.CSS_SELECTOR, '.slider')
    assert len(others) == 2
    images = browser.find_elements(By.TAG_NAME, 'img')
    assert all(browser.execute_script('return arguments[0].naturalWidth', image) == 64 for image in images)

    before = slider.find_element(By.CSS_SELECTOR, '.before')

    def visible() -> float:
        """Share of the width that shows the degraded picture, in percent, as the browser computes it."""
        hidden = re.fullmatch(r'inset\(0px ([\d.]+)% 0px 0px\)', before.value_of_css_property('clip-path'))
        return 100 - float(hidden[1])

    def handle() -> float:
        box, line = slider.rect, slider.find_element(By.CSS_SELECTOR, '.handle').rect
        return (line['x'] + line['width'] / 2 - box['x']) / box['width'] * 100

    assert visible() == pytest.approx(50)
    control = slider.find_element(By.TAG_NAME, 'input')
    control.send_keys(*[Keys.ARROW_RIGHT] * 3)
    assert visible() == pytest.approx(53)
    assert handle() == pytest.approx(53, abs=1)
    control.send_keys(Keys.HOME)
    assert visible() == pytest.approx(0)
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', slider)
    width = slider.rect['width']
    actions = ActionChains(browser)
    actions.move_to_element_with_offset(control, -width / 4, 0).click_and_hold().move_by_offset(width / 2, 0)
    actions.release().perform()
    assert visible() == pytest.approx(75, abs=3)

    assert [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE'] == []
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    requested = {m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent'}
    assert {url for url in requested if not url.startswith('data:')} == {page.as_uri()}
