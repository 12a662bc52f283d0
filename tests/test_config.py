"""The configuration: what is allowed is taken, everything else is named with its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from certfs.config import Config, load_config
from certfs.core.bundle import PLATFORM_BUNDLES, BundleSpec
from certfs.core.readers import Reader
from certfs.errors import ConfigError

Loader = Callable[[str], Config]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Give a function that loads the text of a configuration file."""

    def load_text(text: str) -> Config:
        path = tmp_path / "certfs.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(str(path))

    return load_text


def message_of(load: Loader, text: str) -> str:
    """Give what the user is told of a wrong file."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.advice
    assert "certfs.toml" in caught.value.message
    return caught.value.message


def test_without_a_file_everything_has_its_default() -> None:
    """A host of the platform needs no configuration."""
    config = load_config(None)
    assert config.bundles == PLATFORM_BUNDLES
    assert config.source_size_limit == 1 << 20
    assert config.swap_timeout == 30.0
    assert config.makes_identity
    assert config.host_uuid is None
    assert config.dom0_trees[:2] == ("/etc/xensource", "/etc/stunnel")


def test_an_empty_file_is_the_same_as_none(load: Loader) -> None:
    """Every key has a default."""
    assert load("") == load_config(None)


def test_every_key_is_taken(load: Loader) -> None:
    """What docs/config.md lists."""
    config = load(
        """
        host_uuid = "960abfff-6017-4d97-bd56-0a8f1a43e51a"
        identity = true
        source_size_limit = 65536
        swap_timeout = 5
        [dom0]
        trees = ["/etc/stunnel", "/srv/x"]
        [[bundle]]
        source = "in"
        bundle = "out/all.pem"
        [[bundle]]
        source = "by-purpose/ca-*"
        bundle = "by-purpose/bundle-*.pem"
        """
    )
    assert config == Config(
        bundles=(
            BundleSpec((b"in",), (b"out", b"all.pem")),
            BundleSpec((b"by-purpose", b"ca-*"), (b"by-purpose", b"bundle-*.pem")),
        ),
        host_uuid="960abfff-6017-4d97-bd56-0a8f1a43e51a",
        makes_identity=True,
        source_size_limit=65536,
        swap_timeout=5.0,
        dom0_trees=("/etc/stunnel", "/srv/x"),
    )


def test_who_names_bundles_gets_no_host_certificates(load: Loader) -> None:
    """Somebody without XAPI has no use for them, unless they say so."""
    bundles = '[[bundle]]\nsource = "in"\nbundle = "out.pem"\n'
    assert not load(bundles).makes_identity
    assert load("identity = true\n" + bundles).makes_identity
    assert not load("identity = false").makes_identity


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x = 1", "unknown key x (allowed here: host_uuid, identity, source_size_limit"),
        ("[dom0]\ntree = []", "unknown key dom0.tree (allowed here: trees, disabled_bundles)"),
        (
            '[[bundle]]\nsource = "a"\nbundle = "b"\nmode = 1',
            "unknown key bundle[0].mode (allowed here: source, bundle, copy, suffixes, readers)",
        ),
        ('identity = "yes"', "identity: expected `bool"),
        ("source_size_limit = 10", "source_size_limit: expected `int` >= 1024"),
        ("source_size_limit = 1e6", "source_size_limit: expected `int`"),
        ("swap_timeout = 0", "swap_timeout: expected `float` > 0"),
        ("swap_timeout = -inf", "swap_timeout: expected `float` > 0"),
        ("swap_timeout = inf", "swap_timeout: expected `float` <= 3600"),
        ("swap_timeout = nan", "swap_timeout: "),
        ('[[bundle]]\nsource = "a"', "bundle[0]: object missing required field `bundle`"),
        (
            '[[bundle]]\nsource = ""\nbundle = "b"',
            "bundle[0].source: expected `str` of length >= 1",
        ),
        (
            '[[bundle]]\nsource = "a"\nbundle = "b"\nsuffixes = ["crt"]',
            "bundle[0].suffixes: 'crt' is no ending of a file name",
        ),
        (
            '[[bundle]]\nsource = "a"\nbundle = "b"\nsuffixes = []',
            "bundle[0].suffixes: expected `array` of length >= 1",
        ),
        (
            '[[bundle]]\nsource = "a"\nbundle = "stunnel/xapi-pool-ca-bundle.pem"\nsuffixes = [".crt"]',
            "is a bundle of the platform, which reads *.pem alone",
        ),
        (
            (
                '[[bundle]]\nsource = "a"\nbundle = "b/x.crt"\n'
                '[[bundle]]\nsource = "b"\nbundle = "c"\nsuffixes = [".crt"]'
            ),
            "'b/x.crt' would be a source of bundle[1]",
        ),
        ("dom0 = 1", "dom0: expected `object`"),
        ("[dom0]\ntrees = []", "dom0.trees: expected `array` of length >= 1"),
        ('[dom0]\ntrees = ["etc"]', "dom0.trees: 'etc' is not an absolute, plain path"),
        ('[dom0]\ntrees = ["/"]', "dom0.trees: '/' is not an absolute"),
        ('[dom0]\ntrees = ["/etc/../etc/x"]', "is not an absolute, plain path"),
        ('[dom0]\ntrees = ["/a/x", "/b/x"]', "two directories of one name"),
        ('[dom0]\ntrees = ["/a/x", "/a"]', "/a/x lies in /a"),
        ('[dom0]\ntrees = ["/a\\u0000b"]', "is not an absolute, plain path"),
        ('[pool]\nrequire_signature = "yes"', "pool.require_signature: expected `bool`"),
        ("[pool]\nrequire_signature = true", "pool.signers: with require_signature it is"),
        (
            '[pool]\nrequire_signature = true\nsigners = "here"',
            "pool.signers: with require_signature it is the absolute path",
        ),
        (
            "[pool]\nsignatures = true",
            "unknown key pool.signatures (allowed here: require_signature, signers)",
        ),
        ("= 1", "is not TOML"),
        ("a = \x00", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(load: Loader, text: str, expected: str) -> None:
    """File, key and what is allowed are in one line."""
    message = message_of(load, text)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "not a uuid",
        "960abfff60174d97bd560a8f1a43e51a",
        "{960abfff-6017-4d97-bd56-0a8f1a43e51a}",
        "urn:uuid:960abfff-6017-4d97-bd56-0a8f1a43e51a",
        "960ABFFF-6017-4D97-BD56-0A8F1A43E51A",
        "../../../etc/passwd",
        "",
    ],
)
def test_a_uuid_is_in_the_form_that_names_files(load: Loader, text: str) -> None:
    """It becomes a file name in ``certs-pool``."""
    assert "host_uuid" in message_of(load, f'host_uuid = "{text}"')


def bundle(source: str, path: str) -> str:
    """Write one entry of the table."""
    return f'[[bundle]]\nsource = "{source}"\nbundle = "{path}"\n'


@pytest.mark.parametrize(
    "source, path",
    [
        ("/in", "out"),
        ("in", "/out"),
        ("in/", "out"),
        ("in//x", "out"),
        ("./in", "out"),
        ("in/../x", "out"),
        ("in", ".."),
        ("in", "a\\u0000b"),
    ],
)
def test_a_path_is_plain_and_relative(load: Loader, source: str, path: str) -> None:
    """It is seen from the root of the mount and cannot lead out of it."""
    assert "is not a plain relative path" in message_of(load, bundle(source, path))


@pytest.mark.parametrize(
    "source, path",
    [
        ("in-*", "out"),
        ("in", "out-*"),
        ("in-*-*", "out-*"),
        ("in-*", "out-*-*"),
        ("*/in", "out"),
        ("*/in-*", "out-*"),
        ("in-*", "*/out"),
    ],
)
def test_a_pattern_has_one_star_in_each_last_part(load: Loader, source: str, path: str) -> None:
    """Otherwise a directory could not be told from the name of its bundle."""
    assert "one * is allowed" in message_of(load, bundle(source, path))


@pytest.mark.parametrize(
    "text, expected",
    [
        (bundle("in", "in"), "would hide its own source"),
        (bundle("a/b", "a"), "would hide its own source"),
        (
            bundle("a", "x") + bundle("b", "x"),
            "bundle[1].bundle: 'x' is the bundle of bundle[0] too",
        ),
        (
            bundle("a", "x") + bundle("x/y", "z"),
            "bundle[0].bundle: 'x' is a directory of bundle[1]",
        ),
        (
            bundle("a", "x") + bundle("b", "x/z"),
            "bundle[0].bundle: 'x' is a directory of bundle[1]",
        ),
        (bundle("a", "x") + bundle("x", "z"), "bundle[0].bundle: 'x' is a directory of bundle[1]"),
        (
            bundle("a", "b/x.pem") + bundle("b", "a/y.pem"),
            "bundle[0].bundle: 'b/x.pem' would be a source of bundle[1]",
        ),
        (
            bundle("p/ca-*", "p/out-*.pem") + bundle("b", "p/ca-1/y.pem"),
            "bundle[1].bundle: 'p/ca-1/y.pem' would be a source of bundle[0]",
        ),
        (
            bundle("p/ca-*", "p/out-*.crt") + bundle("b", "p/out-1.crt"),
            "bundle[0].bundle: 'p/out-1.crt' is the bundle of bundle[1] too",
        ),
        (bundle("a", ".certfs/status.json"), "cannot be used"),
        (bundle(".certfs", "b"), "cannot be used"),
        (bundle("a", "b" * 241), "cannot be used"),
    ],
)
def test_bundles_do_not_stand_in_each_other_s_way(load: Loader, text: str, expected: str) -> None:
    """I4: above all no bundle may feed another, or two would keep each other's certificates alive."""
    assert expected in message_of(load, text)


@pytest.mark.parametrize(
    "text",
    [
        bundle("a", "a.pem"),
        bundle("a", "a/all.pem"),
        bundle("a", "x.pem") + bundle("a", "y.pem"),
        bundle("a", "b/x.crt") + bundle("b", "y.pem"),
        bundle("a", "b" * 240),
        bundle("*", "bundles-*.pem"),
        bundle("\u00fc/ca", "\u00fc/ca.pem"),
    ],
)
def test_what_can_be_is_allowed(load: Loader, text: str) -> None:
    """A bundle may lie in its own source directory, and two may have one source."""
    assert load(text).bundles


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The exit code is that of configuration."""
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(str(path))
    assert ConfigError.exit_code == 3


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    """One clear line, no traceback."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(str(tmp_path))


def test_bytes_that_are_no_text_are_no_configuration(tmp_path: Path) -> None:
    """TOML is UTF-8."""
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(str(tmp_path / "x"))


# --- a host's own directories


@pytest.fixture
def load_host(tmp_path: Path) -> Loader:
    """Give a function that loads the text of the configuration of a host's own mount."""

    def load_text(text: str) -> Config:
        path = tmp_path / "certfs.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(str(path), host=True)

    return load_text


OWN = bundle("stunnel/partners", "stunnel/partners.pem")


def test_a_host_s_bundles_stay_beside_its_own(load_host: Loader) -> None:
    """Whoever names a bundle of a host adds it to the platform's."""
    own = BundleSpec((b"stunnel", b"partners"), (b"stunnel", b"partners.pem"))
    assert load_host(OWN).bundles == (*PLATFORM_BUNDLES, own)


@pytest.mark.parametrize("index", range(len(PLATFORM_BUNDLES)))
def test_a_bundle_of_the_platform_is_turned_off_by_its_name(load_host: Loader, index: int) -> None:
    """Each of them alone, with or without bundles of the host's own."""
    off = PLATFORM_BUNDLES[index]
    name = b"/".join(off.bundle).decode()
    left = tuple(spec for spec in PLATFORM_BUNDLES if spec != off)
    text = f'[dom0]\ndisabled_bundles = ["{name}"]\n'
    assert load_host(text).bundles == left
    assert load_host(text + OWN).bundles[:-1] == left


def test_a_bundle_of_the_platform_may_be_named_anew(load_host: Loader) -> None:
    """A bundle with the path of one of the platform's stands for it."""
    anew = bundle("stunnel/mine", "stunnel/xapi-stunnel-ca-bundle.pem")
    bundles = {spec.bundle: spec.source for spec in load_host(anew).bundles}
    assert len(bundles) == len(PLATFORM_BUNDLES)
    assert bundles[b"stunnel", b"xapi-stunnel-ca-bundle.pem"] == (b"stunnel", b"mine")


def test_the_platform_s_bundles_are_those_of_presented_trees(load_host: Loader) -> None:
    """Who presents one tree alone gets the bundles that lie in it."""
    bundles = load_host('[dom0]\ntrees = ["/etc/trusted-certs"]').bundles
    assert {spec.bundle[0] for spec in bundles} == {b"trusted-certs"}


@pytest.mark.parametrize(
    "text, expected",
    [
        (bundle("certs", "stunnel/x.pem"), "bundle[0].source: no presented directory is called 'certs'"),
        (bundle("stunnel/certs", "x.pem"), "bundle[0].bundle: no presented directory is called 'x.pem'"),
        (bundle("etc/stunnel/a", "stunnel/x.pem"), "bundle[0].source: no presented directory is called 'etc'"),
        (OWN + bundle("*", "stunnel/x-*.pem"), "bundle[1].source: no presented directory is called '*'"),
        (
            '[dom0]\ntrees = ["/etc/stunnel"]\n' + bundle("trusted-certs/a", "stunnel/x.pem"),
            "bundle[0].source: no presented directory is called 'trusted-certs'",
        ),
        (
            bundle("stunnel/a", "stunnel/certs/x.pem"),
            "'stunnel/certs/x.pem' would be a source of the platform's stunnel/xapi-stunnel-ca-bundle.pem",
        ),
        (
            bundle("trusted-certs/x", "trusted-certs/ca-bundle-general.pem"),
            "the platform's trusted-certs/ca-bundle-*.pem",
        ),
        ('[dom0]\ndisabled_bundles = ["x.pem"]', "dom0.disabled_bundles: 'x.pem' is no bundle of the platform"),
        ('[dom0]\ndisabled_bundles = "x"', "dom0.disabled_bundles: expected `array`"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_host_s_bundles_is_named(
    load_host: Loader, text: str, expected: str
) -> None:
    """A path that leads nowhere, or into the way of a bundle of the platform, is no bundle."""
    assert expected in message_of(load_host, text)


def notify(text: str) -> str:
    """Return a configuration with one reader."""
    return f"[[notify]]\n{text}"


def test_a_reader_has_its_defaults(load: Loader) -> None:
    """One line is enough to have a unit reloaded (I21)."""
    (reader,) = load(notify('systemd_unit = "nginx.service"')).notify
    assert (reader.action, reader.on, reader.bundles) == ("try-reload-or-restart", "bundle", ())
    assert (reader.delay, reader.max_delay, reader.min_interval, reader.timeout) == (0.5, 5, 10, 30)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("delay = 1", "notify[0]: nothing names the reader"),
        (
            'systemd_unit = "a.service"\ncommand = ["/bin/x"]',
            "systemd_unit and command names the reader",
        ),
        ('systemd_unit = "nginx"', "notify[0].systemd_unit: 'nginx' is no name of a unit"),
        ('systemd_unit = "-x.service\\n"', "is no name of a unit"),
        ('systemd_unit = "a.service"\naction = "stop"', "notify[0].action: invalid enum value"),
        ('systemd_unit = "a.service"\nuser = "x"', "notify[0].user: goes with command"),
        ('systemd_unit = "a.service"\nsignal = "USR1"', "notify[0].signal: goes with pid_file"),
        (
            'pid_file = "/run/x.pid"',
            "notify[0].pid_file: needs an absolute path, and the process's name",
        ),
        ('pid_file = "x.pid"\nprocess = "x"', "notify[0].pid_file: needs an absolute path"),
        ('pid_file = "/x"\nprocess = "x"\nsignal = "HOP"', "notify[0].signal: 'HOP' is no signal"),
        ('command = ["x"]', "notify[0].command: 'x' is no absolute path"),
        ('command = "/bin/x -a"', "notify[0].command: expected `array`"),
        (
            'command = ["/x"]\nbundles = ["ca.pem"]',
            "notify[0].bundles: 'ca.pem' is none of the bundles",
        ),
        ('command = ["/x", "a\\u0000"]', "notify[0].command: contains a NUL"),
        ('pid_file = "/x\\u0000"\nprocess = "x"', "notify[0].pid_file: contains a NUL"),
        (
            'command = ["/x"]\non = "host-certificate"\nbundles = ["*"]',
            "notify[0].bundles: goes with on",
        ),
        (
            'command = ["/x"]\n[[notify]]\ncommand = ["/x"]\ndelay = 1',
            "notify[1]: is told of the same already",
        ),
        ('command = ["/x"]\ntimeout = 0', "notify[0].timeout: expected `float` > 0"),
        ('command = ["/x"]\nunit = "x"', "unknown key notify[0].unit (allowed here: on, bundles"),
    ],
)
def test_a_mistake_in_a_reader_is_named_with_its_key(
    load: Loader, text: str, expected: str
) -> None:
    """File, key and what is allowed are in one line."""
    message = message_of(load, notify(text))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "bundles",
    ['["stunnel/*"]', '["stunnel/xapi-pool-ca-bundle.pem"]', '["trusted-certs/ca-bundle-wlb.pem"]'],
)
def test_bundles_of_a_reader_are_patterns(load: Loader, bundles: str) -> None:
    """Also one that only a pattern of bundles makes."""
    assert load(notify(f'command = ["/x"]\nbundles = {bundles}')).notify


def test_a_bundle_may_have_sources_of_other_endings(load: Loader) -> None:
    """I6: for a bundle that is not the platform's, and for each that its pattern stands for."""
    config = load('[[bundle]]\nsource = "ca-*"\nbundle = "b-*"\nsuffixes = [".crt", ".pem"]\n')
    spec = config.bundles[0].expand(b"ca-x")
    assert spec is not None
    assert [spec.is_source(name) for name in (b"a.crt", b"a.pem", b"a.PEM")] == [True, True, False]


def test_a_bundle_may_name_its_readers(load: Loader) -> None:
    """I4: OpenSSL is always among them, and refuses nothing that is in a bundle."""
    config = load('[[bundle]]\nsource = "a"\nbundle = "b"\nreaders = ["openssl", "java"]\n')
    assert config.bundles[0].readers == (Reader.JAVA,)
    with pytest.raises(ConfigError, match="readers"):
        load('[[bundle]]\nsource = "a"\nbundle = "b"\nreaders = ["nss"]\n')
