use super::*;
use crate::report::Measurement;

fn report(command: &str, name: &str) -> Report {
    let mut report = Report::new(command);
    report.results.push(Measurement::new(name, "Mpps", [1.0, 2.0, 3.0]));
    report
}

fn figures(name: &str) -> Vec<Figure> {
    let bar = Bar { median: 2.0, range: [1.0, 3.0] };
    let owned = name.to_owned();
    vec![
        Figure::Bars {
            title: owned.clone(),
            unit: owned.clone(),
            series: vec![owned.clone(), "other".to_owned()],
            groups: vec![(owned.clone(), vec![Some(bar), None])],
        },
        Figure::Curves {
            title: owned.clone(),
            unit: owned.clone(),
            marks: vec![owned.clone(), "p99".to_owned()],
            series: vec![(owned, vec![Some(1.0), Some(100.0)]), ("empty".to_owned(), vec![None, None])],
        },
    ]
}

#[test]
fn text_from_outside_cannot_leave_its_place() {
    let evil = "</title></svg><script>alert('\"&')</script>\u{1b}[31m\0";
    let page = page(&report(evil, evil), evil, &figures(evil));
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains('\u{1b}') && !page.contains('\0'));
    assert!(page.contains("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("</title>").count(), page.matches("<title>").count());
}

#[test]
fn page_needs_nothing_from_the_network() {
    let page = page(&report("mdevd perf net", "to/64/rate"), "table", &figures("rate"));
    for word in ["http:", "https:", "src=", "href=", "@import", "url(", "<script", "<link", "<img"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn page_shows_figures_table_and_results() {
    let page = page(&report("mdevd perf net", "to/64/rate"), "as printed", &figures("rate"));
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("<pre>as printed</pre>"));
    assert!(page.contains("<td>to/64/rate<td>2.000<td>1.000<td>3.000<td>3<td>Mpps<td>ok"));
}
