//! Rust text without its comments and without what stands in its literals, line by line as it was.

/// Blank out comments and the insides of string and character literals; line breaks stay, so line numbers do too.
pub fn code_only(text: &str) -> String {
    let mut rest: Vec<char> = text.chars().collect();
    rest.extend(['\0'; 2]); // so that looking ahead needs no check
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while rest[at] != '\0' {
        let end = match (rest[at], rest[at + 1]) {
            ('/', '/') => line_comment(&rest, at),
            ('/', '*') => block_comment(&rest, at),
            ('"', _) => quoted(&rest, at, '"'),
            ('r', '"' | '#') if !follows_a_word(&rest, at) => raw_string(&rest, at),
            ('b', '\'') if !follows_a_word(&rest, at) => quoted(&rest, at + 1, '\''),
            ('\'', '\\') => quoted(&rest, at, '\''),
            ('\'', _) if rest[at + 2] == '\'' => at + 3,
            _ => {
                out.push(rest[at]);
                at += 1;
                continue;
            }
        };
        let end = end.min(rest.len() - 2);
        out.extend(rest[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// The words (identifiers, keywords, numbers) of code and the lines they stand on, from 1.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().zip(1..).flat_map(|(line, number)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (number, word))
    })
}

fn follows_a_word(text: &[char], at: usize) -> bool {
    // `br"..."` is a raw string as well, and its `b` is a word of one letter
    let before = |back: usize| at.checked_sub(back).map_or(' ', |place| text[place]);
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    in_word(before(1)) && (before(1) != 'b' || in_word(before(2)))
}

fn line_comment(text: &[char], from: usize) -> usize {
    text[from..].iter().position(|c| *c == '\n').map_or(text.len(), |length| from + length)
}

fn block_comment(text: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn quoted(text: &[char], from: usize, mark: char) -> usize {
    let mut at = from + 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            c if c == mark => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `r"..."`, `r#"..."#`; a raw identifier (`r#type`) is skipped over as its `r#`.
fn raw_string(text: &[char], from: usize) -> usize {
    let hashes = text[from + 1..].iter().take_while(|c| **c == '#').count();
    let open = from + 1 + hashes;
    if text[open] != '"' {
        return open;
    }
    let mut at = open + 1;
    while at + hashes < text.len() {
        if text[at] == '"' && text[at + 1..].iter().take(hashes).all(|c| *c == '#') {
            return at + 1 + hashes;
        }
        at += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Vec<String> {
        words(&code_only(text)).map(|(_, word)| word.to_owned()).collect()
    }

    #[test]
    fn comments_and_literals_are_gone() {
        assert_eq!(kept("a // b\n/* c /* d */ e */ f"), ["a", "f"]);
        assert_eq!(kept(r#"let x = "y \" z"; w"#), ["let", "x", "w"]);
        assert_eq!(kept("p(r#\"q \"r\" s\"#, br\"t\", b'u', 'v', '\\'', x)"), ["p", "b", "x"]);
    }

    #[test]
    fn lifetimes_and_names_that_end_in_r_are_code() {
        assert_eq!(kept("fn f<'a>(x: &'a str) {}"), ["fn", "f", "a", "x", "a", "str"]);
        assert_eq!(kept("for\"x\" y"), ["for", "y"]);
    }

    #[test]
    fn what_never_ends_takes_the_rest() {
        assert_eq!(kept("a \"b"), ["a"]);
        assert_eq!(kept("a /* b"), ["a"]);
        assert_eq!(kept("a r#\"b\""), ["a"]);
        assert_eq!(kept("a 'b"), ["a", "b"]);
    }

    #[test]
    fn lines_keep_their_numbers() {
        let code = code_only("/* 1\n2 */ a\n\"3\n4\" b");
        assert_eq!(words(&code).collect::<Vec<_>>(), [(2, "a"), (4, "b")]);
    }
}
