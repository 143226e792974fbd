//! The runbook.

use std::sync::LazyLock;

use askama::Template;
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

use super::Page;
use crate::console::reply::Reply;
use crate::console::request::Request;

const TEXT: &str = include_str!("../../../../deploy/RUNBOOK.md");

#[derive(Template)]
#[template(path = "runbook.html")]
struct Runbook {
    page: Page,
    html: &'static str,
}

/// The page.
pub async fn page(request: Request) -> Reply {
    static HTML: LazyLock<String> = LazyLock::new(|| to_html(TEXT));
    Reply::page(&Runbook { page: request.page("Runbook", "runbook"), html: &HTML })
}

/// Makes HTML of our Markdown, with an id for each heading. Links to other files become text.
fn to_html(markdown: &str) -> String {
    let events: Vec<Event<'_>> = Parser::new_ext(markdown, Options::ENABLE_TABLES).collect();
    let (mut shown, mut is_unlinked) = (Vec::new(), false);
    for (n, event) in events.iter().enumerate() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                shown.push(Event::Start(heading(*level, &events[n..])));
            }
            Event::Start(Tag::Link { dest_url, .. }) if !dest_url.starts_with('#') => is_unlinked = true,
            Event::End(TagEnd::Link) if is_unlinked => is_unlinked = false,
            other => shown.push(other.clone()),
        }
    }
    let mut html = String::new();
    html::push_html(&mut html, shown.into_iter());
    html
}

fn heading<'a>(level: HeadingLevel, events: &[Event<'a>]) -> Tag<'a> {
    let within = events.iter().take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))));
    let text: String = within
        .filter_map(|event| match event {
            Event::Text(text) | Event::Code(text) => Some(text.as_ref()),
            _ => None,
        })
        .collect();
    Tag::Heading { level, id: Some(CowStr::from(anchor(&text))), classes: Vec::new(), attrs: Vec::new() }
}

/// The name by which links find a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_heading_has_a_name() {
        let html = to_html(TEXT);
        for name in ["penstockdeadletters", "penstockrabbitmqunreachable", "rotate-keys", "procedures"] {
            assert!(html.contains(&format!("id=\"{name}\"")), "{name}");
        }
        assert!(!html.contains("<script"));
    }
}
