"""Every setting of Syros in one place: environment first, then config.toml, then the default.

A secret may also come from a file: `JWT_SECRET_FILE=/run/secrets/jwt`.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy
from django.utils.module_loading import import_string
from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent.parent
CONFIG_FILE = Path(os.environ.get("CONFIG_FILE", BASE_DIR / "config.toml"))


def read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with path.open("rb") as file:
        return tomllib.load(file)


config = read_config(CONFIG_FILE)


def env(name: str, default: str = "", toml: str = "") -> str:
    """The environment's value, the file's it names with `_FILE`, config.toml's at the dotted path, or the default."""
    if name in os.environ:
        return os.environ[name]
    if file := os.environ.get(f"{name}_FILE"):
        return Path(file).read_text().strip()
    found: Any = config
    for part in toml.split(".") if toml else []:
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return str(found) if toml and found not in ({}, None) else default


def envint(name: str, default: int, toml: str = "") -> int:
    return int(env(name, str(default), toml))


def envbool(name: str, default: bool = False) -> bool:
    return env(name, "1" if default else "0").lower() in {"1", "true", "yes", "on"}


def saved(name: str) -> str:
    """What `manage.py serve` noted of the servers it embeds, so that other commands find them."""
    path = VAR / "serving.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return str(found.get(name, ""))


def kept_secret(path: Path) -> str:
    """A secret made once and kept in a file that only its owner reads."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        os.write(file, secrets.token_hex(32).encode())
        os.close(file)
    return path.read_text().strip()


VERSION = "0.1.0"
DEV = envbool("SYROS_DEV")
VAR = Path(env("SYROS_VAR", str(BASE_DIR / "var")))
SERVER_HOST = env("SERVER_HOST", "0.0.0.0", "server.host")
REST_PORT = envint("REST_PORT", 8080, "server.port")
GRPC_PORT = envint("GRPC_PORT", 9090, "server.grpc_port")
WS_PORT = envint("WS_PORT", 8081, "server.websocket_port")
# 0: none. It answers for what is below the domain, and what it says is good for so many seconds.
DNS_PORT = envint("DNS_PORT", 0, "discovery.dns.port")
DNS_HOST = env("DNS_HOST", "", "discovery.dns.host") or SERVER_HOST
DNS_DOMAIN = env("DNS_DOMAIN", "syros", "discovery.dns.domain")
DNS_TTL = envint("DNS_TTL", 2, "discovery.dns.ttl")
# A Consul beside Syros: empty, none.
DISCOVERY_CONSUL_URL = env("DISCOVERY_CONSUL_URL", "", "discovery.consul.url")
DISCOVERY_CONSUL_TOKEN = env("DISCOVERY_CONSUL_TOKEN", "", "discovery.consul.token")
DISCOVERY_CONSUL_DATACENTER = env("DISCOVERY_CONSUL_DATACENTER", "", "discovery.consul.datacenter")
DISCOVERY_CONSUL_ADDRESS = env("DISCOVERY_CONSUL_ADDRESS", "", "discovery.consul.address")
DISCOVERY_CONSUL_NAMESPACE = env("DISCOVERY_CONSUL_NAMESPACE", "default", "discovery.consul.namespace")
DISCOVERY_CONSUL_PREFIX = env("DISCOVERY_CONSUL_PREFIX", "", "discovery.consul.prefix")
DISCOVERY_CONSUL_TAG = env("DISCOVERY_CONSUL_TAG", "", "discovery.consul.tag")
DISCOVERY_CONSUL_KEEP_SECONDS = envint("DISCOVERY_CONSUL_KEEP_SECONDS", 300, "discovery.consul.keep_seconds")
# Files in PEM: gRPC speaks TLS where there is a certificate, and where there is an authority for clients, only with
# those that have a certificate of it.
GRPC_TLS_CERT = env("GRPC_TLS_CERT")
GRPC_TLS_KEY = env("GRPC_TLS_KEY")
GRPC_TLS_CLIENT_CA = env("GRPC_TLS_CLIENT_CA")
# Whether this process carries sagas out: `serve` and `serve worker` do.
WORKS = envbool("SYROS_WORKS")
LOG_LEVEL = env("LOG_LEVEL", "info", "logging.level")
LOG_FORMAT = env("LOG_FORMAT", "json", "logging.format")
# Empty: `manage.py serve` starts its own, under VAR.
DATABASE_URL = env("DATABASE_URL", "", "storage.database.url")
REDIS_URL = env("REDIS_URL", "", "storage.redis.url")
# Where cached values are: `redis`, or `postgres` where there is no Redis.
CACHE_BACKEND = env("CACHE_BACKEND", "redis", "cache.backend")
EMBED_POSTGRES, EMBED_VALKEY = not DATABASE_URL, not REDIS_URL
DATABASE_URL = DATABASE_URL or saved("DATABASE_URL")
REDIS_URL = REDIS_URL or saved("REDIS_URL")
JWT_SECRET = env("JWT_SECRET", "", "security.jwt_secret")
# Secrets that stand in somebody's README, so that they are none.
KNOWN_SECRETS = {"secret", "changeme", "change-me", "your-secret-key", "your-super-secret-jwt-key"}
SECRET_IS_SAFE = len(JWT_SECRET) >= 32 and JWT_SECRET.lower() not in KNOWN_SECRETS
# Without one, development makes its own; that is also the secret of whoever works on the database it is for.
KEPT_SECRET = VAR / "secrets" / "jwt"
SECRET_IS_KEPT = not JWT_SECRET and (
    DEV or (os.access(KEPT_SECRET, os.R_OK) and saved("DATABASE_URL") == DATABASE_URL)
)
if SECRET_IS_KEPT:
    JWT_SECRET = kept_secret(KEPT_SECRET)


def sealing_keys(text: str) -> list[bytes]:
    """Keys of 32 bytes, in base64, between commas: the first one seals, all of them open."""
    given = [each.strip().replace("+", "-").replace("/", "_") for each in text.split(",")]
    try:
        found = [base64.urlsafe_b64decode(each) for each in given if each]
    except ValueError:
        found = [b""]
    if any(len(key) != 32 for key in found):
        raise ImproperlyConfigured(
            "SYROS_CONFIG_KEYS: keys of 32 bytes in base64, as `openssl rand -base64 32` makes"
        )
    return found


CONFIG_KEYS = sealing_keys(env("SYROS_CONFIG_KEYS", "", "config.keys"))
if (DEV or SECRET_IS_KEPT) and not CONFIG_KEYS:
    CONFIG_KEYS = [bytes.fromhex(kept_secret(VAR / "secrets" / "config"))]
# A prefix of etcd that is followed as configuration, under another one, in one namespace.
CONFIG_ETCD_URL = env("CONFIG_ETCD_URL", "", "config.etcd_url")
CONFIG_ETCD_PREFIX = env("CONFIG_ETCD_PREFIX")
CONFIG_ETCD_INTO = env("CONFIG_ETCD_INTO", "etcd/")
CONFIG_ETCD_NAMESPACE = env("CONFIG_ETCD_NAMESPACE", "default")
QUEUE_LIMIT = envint("SYROS_QUEUE_LIMIT", 10_000)
IDEMPOTENCY_HOURS = envint("SYROS_IDEMPOTENCY_HOURS", 72)
LOCK_HISTORY_DAYS = envint("SYROS_LOCK_HISTORY_DAYS", 7)
CONFIG_HISTORY_DAYS = envint("SYROS_CONFIG_HISTORY_DAYS", 0)  # 0: kept for ever
SAGA_HISTORY_DAYS = envint("SYROS_SAGA_HISTORY_DAYS", 30)
# Of a service's instances that were well of late so many stay listed, whatever fails; 0: as many as are well.
PROTECTED_SHARE = min(max(float(env("SYROS_PROTECTED_SHARE", "0.5", "discovery.protected_share")), 0.0), 1.0)


def derived(purpose: str) -> str:
    """A secret of its own for each purpose, all from JWT_SECRET: one secret to keep and to rotate."""
    return hmac.new(JWT_SECRET.encode(), purpose.encode(), hashlib.sha256).hexdigest()


SECRET_KEY = derived("django")
API_KEY_PEPPER = derived("api-keys")
DEBUG = False
# Behind a proxy that ends TLS: the admin's cookies go over HTTPS only, and links say so.
HTTPS = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = envbool("SYROS_HTTPS")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
# Sign what participants are sent; several, while one replaces another.
PARTICIPANT_SECRETS = [
    each for each in env("SYROS_PARTICIPANT_SECRETS", "", "sagas.secrets").split(",") if each
]
ALLOWED_HOSTS = env("SYROS_ALLOWED_HOSTS", "*").split(",")
CSRF_TRUSTED_ORIGINS = [origin for origin in env("SYROS_TRUSTED_ORIGINS").split(",") if origin]

INSTALLED_APPS = [
    # Its runserver, and nothing else of it: `serve` is uvicorn's, and Twisted takes memory.
    *(["daphne"] if sys.argv[1:2] == ["runserver"] else []),
    "unfold.apps.BasicAppConfig",  # the site is syros_project.admin's
    "core",
    "rbac",
    "locks",
    "events",
    "discovery",
    "cache",
    "config",
    "sagas",
    "api",
    "syros_project.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "syros_project.urls"
ASGI_APPLICATION = "syros_project.asgi.application"
WSGI_APPLICATION = "syros_project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


# A server that fell out of the network is waited for 25 seconds; TCP by itself would for a quarter of an hour.
ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}


def database(url: str) -> dict[str, Any]:
    """Django's form of a PostgreSQL URL, with all of Syros in a schema of its own."""
    parts = conninfo_to_dict(url)
    known = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    options = {key: value for key, value in parts.items() if key not in known.values()}
    return {
        "ENGINE": "django.db.backends.postgresql",
        **{name: str(parts.get(key) or "") for name, key in known.items()},
        "OPTIONS": {
            **ALIVE,
            **options,
            "options": f"-c search_path=syros,public {options.get('options', '')}".strip(),
        },
        # A connection a thread, of which there are few. A pool of them would come back from an outage late: it
        # waits longer and longer between its attempts to connect.
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }


# Without an address (lint, schema, migrations to write) there is no database; `manage.py serve` brings one.
DATABASES = {"default": database(DATABASE_URL) if DATABASE_URL else {"ENGINE": "django.db.backends.dummy"}}


def channel_layers(url: str) -> dict[str, Any]:
    """Channels' way between processes: what operators tell all of them. Events come by the log."""
    # Apart from other clusters that use the same server.
    options = {"hosts": [url], "prefix": f"syros:{derived('channels')[:16]}"}
    return {"default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": options}}


CHANNEL_LAYERS = channel_layers(REDIS_URL)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher"]
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True
LOGGING_CONFIG = None  # structlog, set up by core.serving

REST_FRAMEWORK = {
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "UNAUTHENTICATED_USER": None,
}
SIMPLE_JWT = {
    "SIGNING_KEY": derived("jwt"),
    "ALGORITHM": "HS256",
    "ISSUER": "syros",
    "AUDIENCE": "syros-api",
    "USER_ID_CLAIM": "sub",
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=15),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=1),
    "UPDATE_LAST_LOGIN": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Syros",
    "DESCRIPTION": "Locks, leases, sagas and events on PostgreSQL: one log under everything.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "APPEND_COMPONENTS": {
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    },
    "SECURITY": [{"bearer": []}, {"apiKey": []}],
    "ENUM_NAME_OVERRIDES": {
        "StepKindEnum": ["call", "sleep", "signal", "saga"],
        "CheckKindEnum": ["http", "tcp", "grpc"],
        "StatusEnum": (
            [
                "scheduled",
                "running",
                "paused",
                "compensating",
                "attention",
                "succeeded",
                "compensated",
                "failed",
                "terminated",
            ]
        ),
        "InstanceStatusEnum": ["healthy", "failing", "maintenance", "expired"],
    },
}


def page(title: str, icon: str, model: str) -> dict[str, Any]:
    """A line of the admin's sidebar, for those who may see the pages behind it."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{model.replace('.', '_')}_changelist"),
        "permission": lambda request: import_string("core.console.may_look")(request, model),
    }


FAVICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'>"
    "<rect width='8' height='8' rx='2' fill='#9810fa'/><circle cx='4' cy='4' r='2' fill='white'/></svg>"
)
UNFOLD = {
    "SITE_TITLE": "Syros",
    "SITE_HEADER": "Syros",
    "SITE_SUBHEADER": VERSION,
    "SITE_SYMBOL": "hub",
    "SITE_URL": "/api/docs",
    "ENVIRONMENT": ["development", "warning"] if DEV else None,
    "DASHBOARD_CALLBACK": "core.console.front_page",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "/favicon.ico"}],
    "SIDEBAR": {
        "show_search": True,
        "command_search": True,
        "navigation": [
            {"items": [{"title": "Now", "icon": "monitoring", "link": reverse_lazy("admin:index")}]},
            {
                "title": "Coordination",
                "items": [
                    page("Locks", "lock", "locks.lock"),
                    page("Elections", "how_to_vote", "locks.election"),
                    page("Sessions", "vital_signs", "core.session"),
                ],
            },
            {
                "title": "Sagas",
                "items": [
                    page("Sagas", "conversion_path", "sagas.saga"),
                    page("Attention", "notification_important", "sagas.attention"),
                    page("Definitions", "schema", "sagas.definitionname"),
                    page("Schedules", "calendar_clock", "sagas.schedule"),
                    page("Tasks", "assignment", "sagas.task"),
                ],
            },
            {
                "title": "Services",
                "items": [
                    page("Services", "dns", "discovery.service"),
                    page("Instances", "lan", "discovery.instance"),
                ],
            },
            {"title": "Cache", "items": [page("Caches", "cached", "cache.cache")]},
            {
                "title": "Configuration",
                "items": [
                    page("Keys", "tune", "config.entry"),
                    page("Schemas", "rule", "config.schema"),
                ],
            },
            {
                "title": "Log",
                "items": [
                    page("Events", "receipt_long", "core.event"),
                    page("Streams", "account_tree", "core.stream"),
                ],
            },
            {
                "title": "Access",
                "items": [
                    page("API keys", "key", "rbac.apikey"),
                    page("Users", "person", "auth.user"),
                    page("Groups", "group", "auth.group"),
                ],
            },
            {
                "title": "System",
                "items": [
                    page("Namespaces", "workspaces", "core.namespace"),
                    page("Processes", "memory", "core.process"),
                ],
            },
        ],
    },
}
