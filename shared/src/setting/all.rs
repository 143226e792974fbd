//! The table of all settings.

use super::Reader::{Both, Ingest, Worker};
use super::make::{counting, duration, number, of_tenant, secret, text};
use super::{Kind, Setting};
use crate::partition::MAX_PARTITIONS;

/// All of them, in the order of the READMEs.
pub const SETTINGS: &[Setting] = &[
    secret(text(
        "AMQP_URL",
        Both,
        Some("amqp://127.0.0.1:5672/%2f"),
        "where RabbitMQ is; `amqps://` for TLS, with the system's certificates or those of `SSL_CERT_FILE`",
    )),
    secret(text(
        "AMQP_MANAGEMENT_URL",
        Worker,
        None,
        "RabbitMQ's management API, such as `http://user:password@host:15672`; the user is that of `AMQP_URL` if it names none. With it, `worker doctor` sees more, and workers warn of policies that let messages vanish",
    )),
    text(
        "SSL_CERT_FILE",
        Both,
        None,
        "a file with the certificates to trust with TLS, instead of the system's; for RabbitMQ, and for a MongoDB without `tlsCAFile`",
    ),
    text("TENANTS", Both, None, "the tenants, comma separated"),
    of_tenant(secret(text(
        "MONGO_URI",
        Worker,
        None,
        "where the tenant's MongoDB is; `tls=true` for TLS, `tlsCAFile` for a certificate authority of your own",
    ))),
    of_tenant(text("DB_NAME", Worker, None, "the tenant's database; without it, the one that the URI names")),
    of_tenant(secret(text(
        "SIGNING_KEYS",
        Ingest,
        None,
        "the signing keys of the tenant's webhooks, comma separated, 16 at most",
    ))),
    text(
        "SIGNATURE_POLICY",
        Ingest,
        None,
        "what becomes of a webhook without a good signature: `quarantine`, `reject` or `off`; with one of the first two, each tenant needs keys. Without it, `quarantine` for tenants with keys, `off` for others",
    ),
    text("HOST", Ingest, Some("0.0.0.0"), "address of the public port; `::` for IPv6 too"),
    number("PORT", Ingest, "8000", (0, 65535), "the public port; 0 takes any that is free"),
    text(
        "ADMIN_HOST",
        Both,
        Some("127.0.0.1"),
        "address of the admin port; set `0.0.0.0` if probes come from other machines",
    ),
    number("ADMIN_PORT", Ingest, "9100", (0, 65535), "the admin port"),
    number("ADMIN_PORT", Worker, "9101", (0, 65535), "the admin port"),
    text(
        "CONSOLE_HOST",
        Worker,
        Some("127.0.0.1"),
        "address of the pages that `worker console` serves; any other than this machine's own needs `CONSOLE_TOKEN`",
    ),
    number("CONSOLE_PORT", Worker, "9102", (0, 65535), "their port"),
    secret(text(
        "CONSOLE_TOKEN",
        Worker,
        None,
        "what operators log in with there, 16 characters or more; without it, a name is enough",
    )),
    text(
        "CONSOLE_BODIES",
        Worker,
        Some("on"),
        "`off` hides bodies and documents there, which hold personal data: what an event was and what became of it stays visible",
    ),
    Setting {
        kind: Kind::Flag,
        ..text(
            "TEST_MODE",
            Both,
            Some("false"),
            "`true` in any case is on, anything else is off, as in the bridge. On: more logs, and the worker gives every collection the prefix `test_`",
        )
    },
    // A body like [0,0,0] unfolds to six times its size, and a message holds its attachment twice: more could make a
    // document that is beyond MongoDB's 16 MiB.
    counting("bytes", number("MAX_BODY_BYTES", Ingest, "1048576", (1, 5 << 18), "largest body")),
    // With the time for the body and the spool, more would put respond.io's deadline at stake.
    duration(
        "PUBLISH_TIMEOUT",
        Ingest,
        "250ms",
        ("1ms", "1s"),
        "longest wait for RabbitMQ's confirm before the spool takes over",
    ),
    text(
        "SPOOL_DIR",
        Ingest,
        Some("spool"),
        "folder of the spool, made if it is missing; for one ingest alone",
    ),
    counting(
        "bytes",
        number(
            "SPOOL_MAX_BYTES",
            Ingest,
            "1073741824",
            (0, 1 << 50),
            "how much the spool may hold; a nearly full disk stops it too",
        ),
    ),
    counting(
        "messages",
        number(
            "QUARANTINE_BURST",
            Ingest,
            "20000",
            (0, 1_000_000),
            "how much of a tenant's quarantine is kept at once; a large message counts once for each 10 KiB",
        ),
    ),
    counting(
        "messages a second",
        number("QUARANTINE_RATE", Ingest, "5", (0, 100_000), "how much is kept once the burst is used up"),
    ),
    counting(
        "webhooks",
        number(
            "REFUSAL_BUDGET",
            Ingest,
            "10",
            (0, 1000),
            "how many may be refused (503) within the window before they are given up instead",
        ),
    ),
    duration("REFUSAL_WINDOW", Ingest, "30m", ("1s", "24h"), "how long a refusal is counted"),
    duration(
        "KEEP_ALIVE",
        Ingest,
        "620s",
        ("1s", "24h"),
        "how long a connection may be idle; longer than your load balancer keeps one, so that it never uses one that is being closed (Google's: 600 s)",
    ),
    duration("DRAIN_DELAY", Ingest, "1s", ("0s", "60s"), "how long a stopping ingest goes on serving"),
    counting(
        "queues",
        number(
            "WEBHOOK_WORKERS",
            Both,
            "4",
            (1, MAX_PARTITIONS as u64),
            "work queues of each tenant, beside the one for large bodies, and so the number of batches that are written at the same time, by however many workers. Change it at any time, in either binary first: the larger number counts",
        ),
    ),
    counting(
        "events",
        number(
            "BATCH_SIZE",
            Worker,
            "200",
            (1, 1000),
            "the largest batch; of each queue at most twice as many are in hand",
        ),
    ),
    duration(
        "BATCH_LINGER",
        Worker,
        "100ms",
        ("0ms", "1s"),
        "how long an event in hand waits for others to share its transaction, at most; about half as long where at least four wait",
    ),
    duration("MONGO_TIMEOUT", Worker, "5s", ("100ms", "60s"), "longest time for an attempt to write a batch"),
    counting(
        "connections",
        number(
            "MONGO_MIN_POOL_SIZE",
            Worker,
            "10",
            (0, 10_000),
            "how many are kept to each tenant's MongoDB; if not set, at most the maximum",
        ),
    ),
    counting(
        "connections",
        number("MONGO_MAX_POOL_SIZE", Worker, "50", (1, 10_000), "the most of them; not below the minimum"),
    ),
    duration("EVENT_RETENTION", Worker, "30d", ("60s", "3650d"), "how long `webhook_events` keeps events"),
    of_tenant(secret(text(
        "RESPOND_API_TOKEN",
        Worker,
        None,
        "the token of the tenant's workspace for respond.io's API, which only `worker backfill` needs",
    ))),
    text("RESPOND_API_URL", Worker, Some("https://api.respond.io/v2"), "where respond.io's API is"),
    counting(
        "requests a second",
        number(
            "RESPOND_API_RATE",
            Worker,
            "4",
            (1, 10_000),
            "how many `worker backfill` makes at most; respond.io's limits are shared by all of an organisation's integrations",
        ),
    ),
    duration(
        "SHUTDOWN_GRACE",
        Worker,
        "20s",
        ("1s", "600s"),
        "how long a stopping worker may finish what it has in hand",
    ),
    Setting {
        default: None,
        ..duration(
            "TERMINATION_GRACE",
            Both,
            "",
            ("0s", "30d"),
            "your platform's time from SIGTERM to SIGKILL; startup fails if it is too short for the other settings",
        )
    },
    counting(
        "failures",
        number(
            "CIRCUIT_BREAKER_THRESHOLD",
            Both,
            "10",
            (1, 1_000_000),
            "how many in a row of a tenant's MongoDB open its circuit breaker",
        ),
    ),
    Setting {
        kind: Kind::Duration { from: "100ms", to: "24h", bare_seconds: true },
        unit: "seconds, if no unit is written",
        ..text(
            "CIRCUIT_BREAKER_TIMEOUT",
            Worker,
            Some("60"),
            "longest time that the breaker stays open before MongoDB is tried; it starts at 1 s and doubles",
        )
    },
    counting(
        "successes",
        number(
            "CIRCUIT_BREAKER_HALF_OPEN_THRESHOLD",
            Worker,
            "3",
            (1, 1000),
            "how many tries in a row close it again",
        ),
    ),
    text("HOSTNAME", Ingest, Some("ingest"), "first part of the name under which it announces itself"),
    text(
        "HOSTNAME",
        Worker,
        Some("worker"),
        "first part of the name under which it announces itself, also shown in its `/health`",
    ),
    text("RUST_LOG", Both, None, "what is logged, such as `info,worker=debug`"),
    text(
        "LOG_FORMAT",
        Both,
        None,
        "how it is logged: `text` or `json`; without it, text with colours on a terminal, else JSON",
    ),
    text(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        Both,
        None,
        "an OpenTelemetry collector for traces, such as `http://collector:4318`; without it there are none",
    ),
    text(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        Both,
        Some("http/protobuf"),
        "the collector's protocol; there is no other",
    ),
    text(
        "OTEL_TRACES_SAMPLER_ARG",
        Both,
        Some("1"),
        "the share of webhooks that is traced, if their sender hasn't decided that, from 0 to 1",
    ),
    text("OTEL_SERVICE_NAME", Ingest, Some("penstock-ingest"), "the name in traces"),
    text("OTEL_SERVICE_NAME", Worker, Some("penstock-worker"), "the name in traces"),
];
