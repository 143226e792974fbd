//! An OpenTelemetry collector as far as binaries can tell: it takes what OTLP's own types can read.

use std::sync::{Arc, Mutex};

use actix_web::{App, HttpResponse, HttpServer, web};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A span, readable.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The service that it is from.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Id of its trace, in hexadecimal.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// Id of the span that it is part of.
    pub parent: String,
    /// How long it took, in nanoseconds.
    pub took: u64,
    /// Everything that it says, as `name=value`.
    pub attributes: Vec<String>,
}

/// A collector, until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    server: actix_web::dev::ServerHandle,
}

impl Collector {
    /// Starts one.
    pub fn start() -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let data = web::Data::from(seen.clone());
        let server = HttpServer::new(move || {
            App::new().app_data(data.clone()).route("/v1/traces", web::post().to(take))
        })
        .workers(1)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .expect("a port");
        let url = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, seen, server: handle }
    }

    /// What has come so far of this trace.
    pub fn of_trace(&self, trace: &str) -> Vec<Seen> {
        let seen = self.seen.lock().expect("nobody panics");
        seen.iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

async fn take(seen: web::Data<Mutex<Vec<Seen>>>, body: web::Bytes) -> HttpResponse {
    let request = ExportTraceServiceRequest::decode(body).expect("a request of OTLP");
    for resource in request.resource_spans {
        let about = resource.resource.expect("a resource").attributes;
        let service = about.iter().find(|attribute| attribute.key == "service.name").map(text);
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let service = service.expect("a name");
        seen.lock().expect("nobody panics").extend(spans.map(|span| readable(&service, &span)));
    }
    HttpResponse::Ok().finish()
}

fn readable(service: &str, span: &Span) -> Seen {
    Seen {
        service: service.to_owned(),
        name: span.name.clone(),
        trace: hex::encode(&span.trace_id),
        id: hex::encode(&span.span_id),
        parent: hex::encode(&span.parent_span_id),
        took: span.end_time_unix_nano - span.start_time_unix_nano,
        attributes: span.attributes.iter().map(|each| format!("{}={}", each.key, text(each))).collect(),
    }
}

fn text(attribute: &KeyValue) -> String {
    match attribute.value.clone() {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        other => format!("{other:?}"),
    }
}
