"""Everything that is derived from the admin's secret: names in the store, and ciphers."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from os import urandom

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ollama_pack.base.messages import message
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.errors import SettingError

SEAL_VERSION = 1
SECRET_CHARACTERS = 16  # the fewest that a secret may have
_SALT = b"open-webui-ollama-pack cache"
_KEY_BYTES, _TAG_BYTES, _NONCE_BYTES, _KEY_ID_BYTES = 32, 16, 12, 4
_SCOPES_KEPT = 4096  # whose keys are kept ready


class StreamCipher:
    """Seals the records of one generation. Its key is used for nothing else, so the place is the nonce.

    A record that was moved, left out in between, or taken out of another stream does not open.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal_record(self, place: int, plain: bytes) -> bytes:
        return self._cipher.encrypt(place.to_bytes(_NONCE_BYTES, "big"), plain, None)

    def open_record(self, place: int, sealed: bytes) -> bytes:
        """Decrypt the record at a place, counted from 1.

        Raises:
            EntryUnreadableError: it was changed, or stood elsewhere.
        """
        try:
            return self._cipher.decrypt(place.to_bytes(_NONCE_BYTES, "big"), sealed, None)
        except InvalidTag as error:
            raise EntryUnreadableError("a record of the live stream was changed") from error


@dataclass(frozen=True, slots=True)
class _ScopeKeys:
    """What is kept ready of a scope.

    Attributes:
        tag: its name in the store.
        cipher: of its entries.
    """

    tag: str
    cipher: AESGCM


def check_secret(secret: str) -> str:
    """The secret, which is none or can be used.

    Raises:
        SettingError: it is too short.
    """
    if secret:
        _refuse_short(secret)
    return secret


def _refuse_short(secret: str) -> None:
    if len(secret) < SECRET_CHARACTERS:
        raise SettingError(
            message(
                "the cache's secret has {count} characters and needs {least} or more: "
                "`openssl rand -hex 32` makes one",
                count=len(secret),
                least=SECRET_CHARACTERS,
            )
        )


class Keyring:
    """Keys for macs and ciphers, by HKDF-SHA256 (RFC 5869) of one secret.

    A name that was made with one secret cannot be found with another, so a new secret makes a new, empty
    cache. Nothing of what is hashed or encrypted can be told of what the store holds but its length.
    """

    def __init__(self, secret: str) -> None:
        """Derive the keys.

        Args:
            secret: of the admin; the same in every process that shares the store.

        Raises:
            SettingError: it is too short.
        """
        _refuse_short(secret)
        self._secret = secret.encode("utf-8", "surrogatepass")
        self._slot_mac, self._scope_mac, self._label_mac = map(self._mac, (b"slot", b"scope", b"label"))
        self._key_id = self._derive(b"key id")[:_KEY_ID_BYTES]
        self._scopes: OrderedDict[str, _ScopeKeys] = OrderedDict()

    def slot_name(self, version: int, fields: bytes) -> str:
        """HMAC-SHA256 of a request's fields, in hex, after the version of their format."""
        return f"{version:02x}{_mac_of(self._slot_mac, bytes((version,)) + fields).hex()}"

    def scope_tag(self, scope: str) -> str:
        """What a scope is called in the store."""
        return self._keys_of(scope).tag

    def label_tag(self, label: str) -> str:
        """What a label, such as `chat:<id>`, is called in the store."""
        return _tag_of(self._label_mac, label)

    def seal_entry(self, scope: str, slot: str, plain: bytes) -> bytes:
        """Encrypt an entry: version, id of the key, nonce, and AES-256-GCM of the text."""
        nonce = urandom(_NONCE_BYTES)
        head = bytes((SEAL_VERSION,)) + self._key_id
        return head + nonce + self._keys_of(scope).cipher.encrypt(nonce, plain, _bound(head, scope, slot))

    def open_entry(self, scope: str, slot: str, sealed: bytes) -> bytes:
        """Decrypt an entry.

        Raises:
            EntryUnreadableError: it was changed, or is not this scope's, this slot's or this secret's.
        """
        head_size = 1 + _KEY_ID_BYTES
        head, nonce = sealed[:head_size], sealed[head_size : head_size + _NONCE_BYTES]
        if head != bytes((SEAL_VERSION,)) + self._key_id or len(nonce) != _NONCE_BYTES:
            raise EntryUnreadableError("the entry is of another version or secret, or cut off")
        try:
            rest = sealed[head_size + _NONCE_BYTES :]
            return self._keys_of(scope).cipher.decrypt(nonce, rest, _bound(head, scope, slot))
        except InvalidTag as error:
            raise EntryUnreadableError("the entry was changed, or belongs elsewhere") from error

    def stream_cipher(self, scope: str, slot: str, token: str) -> StreamCipher:
        """The cipher of one generation's live stream."""
        return StreamCipher(self._derive(b"stream", scope, slot, token))

    def _keys_of(self, scope: str) -> _ScopeKeys:
        found = self._scopes.get(scope)
        if found is None:
            cipher = AESGCM(self._derive(b"entry", scope))
            found = self._scopes[scope] = _ScopeKeys(_tag_of(self._scope_mac, scope), cipher)
            if len(self._scopes) > _SCOPES_KEPT:
                self._scopes.popitem(last=False)
        return found

    def _derive(self, use: bytes, *names: str) -> bytes:
        info = use + _joined_names(names)
        return HKDF(SHA256(), _KEY_BYTES, salt=_SALT, info=info).derive(self._secret)

    def _mac(self, use: bytes) -> HMAC:
        """A mac that has its key and no content yet: copies of it cost half of a new one."""
        return HMAC(self._derive(use), SHA256())


def _mac_of(mac: HMAC, content: bytes) -> bytes:
    one = mac.copy()
    one.update(content)
    return one.finalize()


def _tag_of(mac: HMAC, name: str) -> str:
    return _mac_of(mac, name.encode("utf-8", "surrogatepass"))[:_TAG_BYTES].hex()


def digest_of(content: bytes) -> str:
    """The name of a content, such as an image: its SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def _bound(head: bytes, scope: str, slot: str) -> bytes:
    return head + _joined_names((scope, slot))


def _joined_names(names: tuple[str, ...]) -> bytes:
    """Names one after another, each after its length, so that no two lists give the same bytes."""
    encoded = (name.encode("utf-8", "surrogatepass") for name in names)
    return b"".join(len(name).to_bytes(4, "big") + name for name in encoded)
