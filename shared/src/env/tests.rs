use super::*;

#[test]
fn durations_need_a_unit() {
    for (text, expected) in [
        ("250ms", Some(Duration::from_millis(250))),
        ("5s", Some(Duration::from_secs(5))),
        ("30m", Some(Duration::from_mins(30))),
        ("30d", Some(Duration::from_hours(720))),
        ("5", None),
        ("s", None),
        ("-1s", None),
        ("1.5s", None),
        ("99999999999999999999d", None),
    ] {
        assert_eq!(parse_duration(text), expected, "{text}");
    }
    let mut env = Env::of(&[("CIRCUIT_BREAKER_TIMEOUT", "90"), ("MONGO_TIMEOUT", "6")]);
    assert_eq!(env.duration("CIRCUIT_BREAKER_TIMEOUT"), Duration::from_secs(90));
    assert_eq!(env.duration("MONGO_TIMEOUT"), Duration::from_secs(5));
    assert_eq!(env.finish(()).unwrap_err().problems.len(), 1);
}

#[test]
fn all_problems_come_at_once_and_say_where_from() {
    let mut env = Env::of(&[("PORT", "x"), ("SPOOL_DIR_FILE", "/nowhere/at/all")]);
    env.add_dotenv("DRAIN_DELAY=5\nPORT=80");
    env.number::<u16>("PORT");
    env.duration("DRAIN_DELAY");
    env.text("SPOOL_DIR");
    env.number::<u16>("NONE_OF_OURS");
    let problems = env.finish(()).unwrap_err().problems;
    assert_eq!(problems[0], "PORT: \"x\" is not a whole number from 0 to 65535 (environment)");
    assert!(problems[1].starts_with("DRAIN_DELAY: ") && problems[1].ends_with(" (.env)"), "{problems:?}");
    assert!(problems[2].starts_with("SPOOL_DIR_FILE: /nowhere/at/all: "), "{problems:?}");
}

#[test]
fn secrets_may_stand_in_files_and_blank_is_not_set() {
    let path = std::env::temp_dir().join(format!("penstock-secret-{}", std::process::id()));
    std::fs::write(&path, "\"top secret\"\n").unwrap();
    let path = path.to_str().unwrap();
    let mut env = Env::of(&[("SIGNING_KEYS_FILE", path), ("TENANTS", " "), ("DB_NAME", "\"\"")]);
    assert_eq!(env.text("SIGNING_KEYS").as_deref(), Some("top secret"));
    assert_eq!((env.text("TENANTS"), env.text("DB_NAME")), (None, None));
    assert_eq!(env.in_force()["SIGNING_KEYS"].origin, Origin::File(path.to_owned()));
    assert!(env.in_force()["SIGNING_KEYS"].is_secret);
    assert_eq!(env.warnings().len(), 1);
    assert!(!env.warnings()[0].contains("top"), "{:?}", env.warnings());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_environment_wins_over_the_file() {
    let mut env = Env::of(&[("HOST", "process")]);
    env.add_dotenv("HOST=file\nADMIN_HOST=file");
    assert_eq!(
        (env.text_or_default("HOST"), env.text_or_default("ADMIN_HOST")),
        ("process".into(), "file".into())
    );
    assert_eq!(env.in_force()["HOST"].origin, Origin::Environment);
    assert_eq!(env.in_force()["ADMIN_HOST"].origin, Origin::Dotenv);
}

#[test]
fn a_file_that_the_environment_names_wins_over_a_value_in_the_file() {
    let path = std::env::temp_dir().join(format!("penstock-precedence-{}", std::process::id()));
    std::fs::write(&path, "mounted").unwrap();
    let path = path.to_str().unwrap();
    let read = |environment: &[(&str, &str)], dotenv: &str| {
        let mut env = Env::of(environment);
        env.add_dotenv(dotenv);
        env.text_or_default("SPOOL_DIR")
    };
    let (file, named) = ([("SPOOL_DIR_FILE", path)], format!("SPOOL_DIR_FILE={path}"));
    assert_eq!(read(&file, "SPOOL_DIR=dotenv"), "mounted");
    assert_eq!(read(&[("SPOOL_DIR", "environment")], &named), "environment");
    assert_eq!(read(&[("SPOOL_DIR", "environment"), file[0]], ""), "environment");
    assert_eq!(read(&[], &format!("SPOOL_DIR=dotenv\n{named}")), "dotenv");
    assert_eq!(read(&[("SPOOL_DIR", "")], "SPOOL_DIR=dotenv"), "spool", "blank in the environment");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn lines_that_make_no_sense_are_ignored_with_a_warning() {
    let mut env = Env::of(&[]);
    env.add_dotenv("HOST=a\nwhat is this\n");
    assert_eq!((env.text_or_default("HOST"), env.warnings().len()), ("a".into(), 1));
    assert!(env.warnings()[0].contains("line 2"), "{:?}", env.warnings());
    let mut marked = Env::of(&[]);
    marked.add_dotenv("\u{feff}TENANTS=a\n");
    assert_eq!((marked.text("TENANTS"), marked.warnings().len()), (None, 1));
}

#[test]
fn quotes_around_a_whole_value_are_taken_off() {
    for (given, meant) in [
        (r#""8000""#, "8000"),
        ("'8000'", "8000"),
        ("\"k3y=\" ", "k3y="),
        (r#""a","b""#, r#""a","b""#),
        ("\"", "\""),
        ("it's", "it's"),
    ] {
        assert_eq!(unquoted(given.trim()), meant);
        let mut env = Env::of(&[("HOST", given)]);
        assert_eq!(env.text_or_default("HOST"), meant);
        assert_eq!(env.warnings().len(), usize::from(given.trim() != meant), "{given}");
    }
    let mut env = Env::of(&[]);
    env.add_dotenv(r#"HOST='"h"'"#);
    assert_eq!(env.text_or_default("HOST"), r#""h""#, "python-dotenv has taken its own off");
}

#[test]
fn only_true_is_on() {
    for (given, is_on, warnings) in [
        ("true", true, 0),
        ("TRUE", true, 0),
        ("False", false, 0),
        ("0", false, 0),
        ("", false, 0),
        ("1", false, 1),
        ("yes", false, 1),
        ("on", false, 1),
        ("production", false, 1),
    ] {
        let mut env = Env::of(&[("TEST_MODE", given)]);
        assert_eq!((env.flag("TEST_MODE"), env.warnings().len()), (is_on, warnings), "{given}");
        assert_eq!(env.in_force()["TEST_MODE"].value, Some(is_on.to_string()));
    }
}
