package record

// newBody returns an empty body of kind, or nil where there is none.
func newBody(kind Kind) Body {
	for _, b := range bodies() {
		if b.Kind() == kind {
			return b
		}
	}
	return nil
}

// bodies has one of each kind.
func bodies() []Body {
	return []Body{
		&Genesis{}, &Boot{}, &Stop{}, &Gap{}, &Close{},
		&Decision{}, &Admitted{}, &Remediation{},
		&Snapshot{}, &State{}, &Beat{},
		&ExceptionRequested{}, &ExceptionGranted{}, &ExceptionUsed{}, &ExceptionRevoked{}, &ExceptionExpired{},
		&ConfigChanged{}, &KeyCreated{}, &KeyDestroyed{}, &KeyUsed{},
	}
}
