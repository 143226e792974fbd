//! Traces: a span for each part of an event's way, sent to an OpenTelemetry collector if one is named.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use http::Uri;
use opentelemetry::propagation::TextMapPropagator;
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{Span as _, SpanBuilder, Status, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{self as sdk, Sampler, SdkTracer, SdkTracerProvider, SpanData};
use prometheus::{IntCounterVec, Opts, Registry};
use tracing::{info, warn};

use crate::env::Env;
use crate::telemetry::chain;

/// Longest time to send what is left when stopping.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for the collector to take some spans.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The span is kept until it can be exported, unless too many are.
const RECORDED: &str = "recorded";
/// The collector has the span.
const EXPORTED: &str = "exported";
/// The collector could not be reached, or didn't want the span.
const FAILED: &str = "failed";

/// Where spans go, by the names that OpenTelemetry gives these settings.
#[derive(Clone, Debug)]
pub struct Export {
    endpoint: Option<String>,
    service: String,
    ratio: f64,
}

impl Export {
    /// Reads the settings.
    pub fn read(env: &mut Env) -> Self {
        let endpoint = env.text("OTEL_EXPORTER_OTLP_ENDPOINT");
        if endpoint.as_ref().is_some_and(|url| !is_http(url)) {
            env.problem(
                "OTEL_EXPORTER_OTLP_ENDPOINT: is no URL like http://collector:4318; https needs a collector in between",
            );
        }
        // If nothing is exported, settings for other exporters don't matter.
        if endpoint.is_none() {
            return Self { endpoint, service: String::new(), ratio: 1.0 };
        }
        if env.text("OTEL_EXPORTER_OTLP_PROTOCOL").is_some_and(|protocol| protocol != "http/protobuf") {
            env.problem("OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is spoken here");
        }
        let ratio = env.text_or_default("OTEL_TRACES_SAMPLER_ARG").parse().ok();
        let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
            env.problem("OTEL_TRACES_SAMPLER_ARG: is not a number from 0 to 1");
            1.0
        });
        Self { endpoint, service: env.text_or_default("OTEL_SERVICE_NAME"), ratio }
    }
}

/// Whether the collector is reached without encryption.
fn is_http(url: &str) -> bool {
    let has_host = |url: &Uri| url.host().is_some_and(|host| !host.is_empty());
    url.parse().is_ok_and(|url| has_host(&url) && url.scheme_str() == Some("http"))
}

/// Makes spans; none unless they are exported.
#[derive(Debug)]
pub struct Traces {
    exporting: Option<(SdkTracerProvider, SdkTracer)>,
    spans: IntCounterVec,
}

/// Why traces can't be exported. Not that the collector doesn't answer: it may do so later.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings make no client.
    #[error("can't export traces")]
    Export(#[from] ExporterBuildError),
    /// The metrics are defined wrongly, a defect of ours.
    #[error("can't define the metrics")]
    Metrics(#[from] prometheus::Error),
}

impl Traces {
    /// Starts exporting, if a collector is set; counts spans in this registry.
    pub fn start(export: &Export, registry: &Registry) -> Result<Self, StartError> {
        let spans =
            IntCounterVec::new(Opts::new("trace_spans_total", "Spans of traces by outcome"), &["outcome"])?;
        for outcome in [RECORDED, EXPORTED, FAILED] {
            spans.with_label_values(&[outcome]);
        }
        registry.register(Box::new(spans.clone()))?;
        let provider = export.endpoint.as_ref().map(|url| provider(export, url, &spans)).transpose()?;
        let exporting = provider.map(|provider| (provider.clone(), provider.tracer("penstock")));
        Ok(Self { exporting, spans })
    }

    /// A span that has begun at `started`, within the W3C `traceparent` of the caller.
    #[must_use]
    pub fn span(
        &self,
        name: impl FnOnce() -> String,
        kind: SpanKind,
        started: SystemTime,
        traceparent: Option<&str>,
    ) -> Option<Span> {
        let (_, tracer) = self.exporting.as_ref()?;
        let parent = traceparent.map_or_else(Context::new, context);
        let builder = SpanBuilder::from_name(name()).with_kind(kind).with_start_time(started);
        let span = tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            self.spans.with_label_values(&[RECORDED]).inc();
        }
        Some(Span(span))
    }

    /// Sends what is left, for at most [`FLUSH_TIMEOUT`].
    pub async fn stop(&self) {
        let Some((provider, _)) = self.exporting.clone() else { return };
        // A thread that nobody waits for: the exporter itself waits without end for a name that can't be
        // resolved. What couldn't be sent is counted where that happens.
        let (sender, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
            let _ = sender.send(());
        });
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, stopped).await;
    }
}

fn provider(
    export: &Export,
    url: &str,
    spans: &IntCounterVec,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let watched = Watched { exporter, spans: spans.clone(), fails: AtomicBool::new(false) };
    Ok(SdkTracerProvider::builder()
        // Bounded: what comes beyond is dropped, and neither exported nor failed.
        .with_batch_exporter(watched)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(export.ratio))))
        .with_resource(Resource::builder().with_service_name(export.service.clone()).build())
        .build())
}

fn context(traceparent: &str) -> Context {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// A part of an event's way, until it is dropped.
#[derive(Debug)]
pub struct Span(sdk::Span);

impl Span {
    /// The id of its trace, if that is recorded.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let context = self.0.span_context();
        context.is_sampled().then(|| context.trace_id().to_string())
    }

    /// The W3C `traceparent` for what happens within it.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let context = self.0.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8())
    }

    /// Adds an attribute; never anything from a body.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Marks it as failed.
    pub fn fail(&mut self, why: impl Into<String>) {
        self.0.set_status(Status::error(why.into()));
    }
}

/// Tells whether spans arrive, once for each change; the exporter itself is silent about it.
#[derive(Debug)]
struct Watched {
    exporter: SpanExporter,
    spans: IntCounterVec,
    fails: AtomicBool,
}

impl sdk::SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        let (outcome, fails) = if exported.is_ok() { (EXPORTED, false) } else { (FAILED, true) };
        self.spans.with_label_values(&[outcome]).inc_by(spans);
        match (&exported, self.fails.swap(fails, Ordering::Relaxed)) {
            (Err(error), false) => warn!(error = chain(error), "can't export traces, dropping them"),
            (Ok(()), true) => info!("traces can be exported again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn traces(settings: &[(&str, &str)]) -> Traces {
        let mut env = Env::of(settings);
        let export = Export::read(&mut env);
        env.finish(()).unwrap();
        Traces::start(&export, &Registry::new()).unwrap()
    }

    fn traceparent(traces: &Traces, caller: Option<&str>) -> Option<String> {
        let span = traces.span(|| "a span".into(), SpanKind::Server, SystemTime::now(), caller)?;
        Some(span.traceparent())
    }

    #[test]
    fn a_span_belongs_to_the_callers_trace() {
        let traces = traces(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")]);
        let within = traceparent(&traces, Some(CALLER)).unwrap();
        assert_eq!(within[..35], CALLER[..35]);
        assert_eq!(within[52..], CALLER[52..]);
        assert_ne!(within[36..52], CALLER[36..52]);
        let not_sampled = CALLER.replace("-01", "-00");
        assert!(traceparent(&traces, Some(&not_sampled)).unwrap().ends_with("-00"));
    }

    #[test]
    fn without_a_caller_the_ratio_decides() {
        let with = |ratio| {
            traces(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
                ("OTEL_TRACES_SAMPLER_ARG", ratio),
            ])
        };
        assert!(traceparent(&with("0"), None).unwrap().ends_with("-00"));
        assert!(traceparent(&with("1"), None).unwrap().ends_with("-01"));
    }

    #[test]
    fn without_a_collector_there_are_no_spans() {
        assert_eq!(traceparent(&traces(&[]), Some(CALLER)), None);
    }

    #[test]
    fn an_endpoint_has_a_host() {
        for url in ["http://collector", "http://collector:4318", "http://[::1]:4318/otlp"] {
            assert!(is_http(url), "{url}");
        }
        for url in [
            "",
            "http",
            "http://",
            "http://:4318",
            "http:///v1",
            "http://a b",
            "https://collector",
            "collector:4318",
        ] {
            assert!(!is_http(url), "{url}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_problems() {
        let mut env = Env::of(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ]);
        Export::read(&mut env);
        assert_eq!(env.finish(()).unwrap_err().problems.len(), 3);
    }
}
