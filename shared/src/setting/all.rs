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
        "the address of RabbitMQ; `amqps://` for TLS, with the system's certificates or those of `SSL_CERT_FILE`",
    )),
    secret(text(
        "AMQP_MANAGEMENT_URL",
        Worker,
        None,
        "RabbitMQ's management API, such as `http://user:password@host:15672`; without a user, the user of `AMQP_URL`. With this setting, `worker doctor` checks more, and workers warn about policies that delete messages",
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
        "the address of the tenant's MongoDB; `tls=true` for TLS, `tlsCAFile` for a certificate authority of your own",
    ))),
    of_tenant(text(
        "DB_NAME",
        Worker,
        None,
        "the tenant's database; without this setting, the database that the URI names",
    )),
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
        "what to do with a webhook without a good signature: `quarantine`, `reject` or `off` (accept it). With `quarantine` or `reject`, each tenant needs keys. Without this setting, `quarantine` for tenants with keys, `off` for others",
    ),
    text("HOST", Ingest, Some("0.0.0.0"), "address of the public port; `::` for IPv6 too"),
    number("PORT", Ingest, "8000", (0, 65535), "the public port; 0 takes any free port"),
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
        "address of the console (`worker console`); an address that other machines reach needs `CONSOLE_TOKEN`",
    ),
    number("CONSOLE_PORT", Worker, "9102", (0, 65535), "the console's port"),
    secret(text(
        "CONSOLE_TOKEN",
        Worker,
        None,
        "the token with which operators log in to the console, 16 characters or more; without this setting, a name is enough",
    )),
    text(
        "CONSOLE_BODIES",
        Worker,
        Some("on"),
        "`off` hides bodies and documents in the console, since they hold personal data; the console still shows each event's type, times and outcome",
    ),
    Setting {
        kind: Kind::Flag,
        ..text(
            "TEST_MODE",
            Both,
            Some("false"),
            "`true`, in upper or lower case, is on; anything else is off, as in the bridge. On: more logs, and the worker gives every collection the prefix `test_`",
        )
    },
    // A body like [0,0,0] unfolds to six times its size, and a message holds its attachment twice: more could
    // make a document that is beyond MongoDB's 16 MiB.
    counting("bytes", number("MAX_BODY_BYTES", Ingest, "1048576", (1, 5 << 18), "largest body")),
    // Less is not much more than the longest wait for a group, 8 ms. More, with the time for the body and the
    // spool, would put respond.io's deadline at stake.
    duration(
        "PUBLISH_TIMEOUT",
        Ingest,
        "250ms",
        ("50ms", "1s"),
        "longest wait for RabbitMQ's confirm before the spool takes over",
    ),
    text(
        "SPOOL_DIR",
        Ingest,
        Some("spool"),
        "folder of the spool; ingest makes it if it is missing. Each ingest needs its own",
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
            "how many webhooks of a tenant ingest puts into the quarantine in a burst; a large one counts once for each 10 KiB",
        ),
    ),
    counting(
        "messages a second",
        number(
            "QUARANTINE_RATE",
            Ingest,
            "5",
            (0, 100_000),
            "how many more ingest puts there after the burst",
        ),
    ),
    counting(
        "webhooks",
        number(
            "REFUSAL_BUDGET",
            Ingest,
            "10",
            (0, 1000),
            "how many webhooks ingest may refuse (503) within the window; it gives up the others",
        ),
    ),
    duration("REFUSAL_WINDOW", Ingest, "30m", ("1s", "24h"), "how long a refusal counts"),
    duration(
        "KEEP_ALIVE",
        Ingest,
        "620s",
        ("1s", "24h"),
        "how long a connection may be idle; set it longer than your load balancer's own time (Google's: 600 s), so that the load balancer never uses a connection that ingest closes",
    ),
    duration("DRAIN_DELAY", Ingest, "1s", ("0s", "60s"), "how long a stopping ingest keeps serving"),
    counting(
        "queues",
        number(
            "WEBHOOK_WORKERS",
            Both,
            "4",
            (1, MAX_PARTITIONS as u64),
            "work queues of each tenant, beside the one for large bodies. This is also the number of batches that all workers together write at the same time. You may change it at any time, in either binary first: the larger number counts",
        ),
    ),
    counting(
        "events",
        number(
            "BATCH_SIZE",
            Worker,
            "200",
            (1, 1000),
            "the largest batch; a worker has at most twice as many events of each queue in hand",
        ),
    ),
    duration(
        "BATCH_LINGER",
        Worker,
        "100ms",
        ("0ms", "1s"),
        "the longest time that an event in hand waits for others to share its transaction; about half as long if at least four wait",
    ),
    duration("MONGO_TIMEOUT", Worker, "5s", ("100ms", "60s"), "longest time for an attempt to write a batch"),
    counting(
        "connections",
        number(
            "MONGO_MIN_POOL_SIZE",
            Worker,
            "10",
            (0, 10_000),
            "the smallest number of connections to each tenant's MongoDB; the default is lowered to the maximum",
        ),
    ),
    counting(
        "connections",
        number(
            "MONGO_MAX_POOL_SIZE",
            Worker,
            "50",
            (1, 10_000),
            "the largest number of connections to it; not below the minimum",
        ),
    ),
    duration("EVENT_RETENTION", Worker, "30d", ("60s", "3650d"), "how long `webhook_events` keeps events"),
    of_tenant(secret(text(
        "RESPOND_API_TOKEN",
        Worker,
        None,
        "the token of the tenant's workspace for respond.io's API; only `worker backfill` needs it",
    ))),
    text("RESPOND_API_URL", Worker, Some("https://api.respond.io/v2"), "the address of respond.io's API"),
    counting(
        "requests a second",
        number(
            "RESPOND_API_RATE",
            Worker,
            "4",
            (1, 10_000),
            "the most requests that `worker backfill` makes; all integrations of an organisation share respond.io's limits",
        ),
    ),
    duration(
        "SHUTDOWN_GRACE",
        Worker,
        "20s",
        ("1s", "600s"),
        "how long a stopping worker may take to finish the events in hand",
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
            "how many failures of a tenant's MongoDB in a row open its circuit breaker",
        ),
    ),
    Setting {
        kind: Kind::Duration { from: "100ms", to: "24h", bare_seconds: true },
        unit: "seconds, if no unit is written",
        ..text(
            "CIRCUIT_BREAKER_TIMEOUT",
            Worker,
            Some("60"),
            "longest time that the breaker stays open before the worker tries MongoDB; the time starts at 1 s and doubles",
        )
    },
    counting(
        "successes",
        number(
            "CIRCUIT_BREAKER_HALF_OPEN_THRESHOLD",
            Worker,
            "3",
            (1, 1000),
            "how many successful tries in a row close the breaker",
        ),
    ),
    text("HOSTNAME", Ingest, Some("ingest"), "first part of the name under which ingest announces itself"),
    text(
        "HOSTNAME",
        Worker,
        Some("worker"),
        "first part of the name under which the worker announces itself; `/health` also shows it",
    ),
    text("RUST_LOG", Both, None, "what is logged, such as `info,worker=debug`"),
    text(
        "LOG_FORMAT",
        Both,
        None,
        "the form of the log: `text` or `json`; without this setting, text with colours on a terminal, else JSON",
    ),
    text(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        Both,
        None,
        "an OpenTelemetry collector for traces, such as `http://collector:4318`; without this setting there are no traces",
    ),
    text(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        Both,
        Some("http/protobuf"),
        "the collector's protocol; Penstock has no other",
    ),
    text(
        "OTEL_TRACES_SAMPLER_ARG",
        Both,
        Some("1"),
        "the share of webhooks to trace, from 0 to 1, if the sender hasn't decided",
    ),
    text("OTEL_SERVICE_NAME", Ingest, Some("penstock-ingest"), "the name in traces"),
    text("OTEL_SERVICE_NAME", Worker, Some("penstock-worker"), "the name in traces"),
];
