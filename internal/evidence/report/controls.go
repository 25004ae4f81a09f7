package report

// control is a requirement that the report can say something to. Its texts are in the catalogues.
type control struct {
	id string
	// see are the sections that it is said in.
	see []string
}

// framework is a text with requirements.
type framework struct {
	id       string
	controls []control
}

// frameworks are those that readers of such reports have asked by. What a report cannot show stands next to what it
// can: a mapping that only lists what fits would claim more than the logs carry.
func frameworks() []framework {
	timeline := []string{"timeline", "intervals"}
	return []framework{
		{"gdpr", []control{
			{"gdpr-5-1-f", timeline}, {"gdpr-5-2", []string{"verify"}}, {"gdpr-24", []string{"changes"}}, {"gdpr-25", []string{"refusals", "by-month"}},
			{"gdpr-30", []string{"scope", "timeline"}}, {"gdpr-32", []string{"timeline", "gaps", "refusals"}}, {"gdpr-33", []string{"intervals", "remediations"}},
		}},
		{"nsm", []control{{"nsm-2.7", timeline}, {"nsm-3.2.6", []string{"verify", "gaps", "clocks"}}}},
		{"iso", []control{
			{"iso-5.28", []string{"verify"}}, {"iso-5.33", []string{"verify", "keys"}}, {"iso-8.15", []string{"refusals", "changes", "gaps"}},
			{"iso-8.17", []string{"clocks"}}, {"iso-8.20", timeline}, {"iso-8.24", []string{"timeline", "exceptions"}},
		}},
		{"dora", []control{{"dora-6", []string{"timeline", "exceptions"}}, {"dora-12", []string{"verify", "gaps", "clocks"}}}},
		{"normen", []control{{"normen-15", []string{"refusals", "changes"}}, {"normen-24", timeline}, {"normen-25", []string{"keys"}}}},
		{"soc2", []control{{"soc2-cc6.7", timeline}, {"soc2-cc7.2", []string{"findings", "refusals", "gaps"}}}},
	}
}

// limits are what the report does not show, by the keys of their texts.
func limits() []string {
	return []string{"packets", "before", "etcd", "admin", "refused", "ca", "tail", "people"}
}

// controlView is a row of the mapping.
type controlView struct {
	Ref, Asks, Shows, Not string
	See                   []link
}

// link leads to a section.
type link struct{ ID, Title string }

// frameworkView is a part of the mapping.
type frameworkView struct {
	Title    string
	Controls []controlView
}

// mapping links to the sections that the page has.
func (v view) mapping(sections []link) []frameworkView {
	var list []frameworkView
	for _, f := range frameworks() {
		fv := frameworkView{Title: v.l.text("framework." + f.id)}
		for _, c := range f.controls {
			key := "control." + c.id
			cv := controlView{Ref: v.l.text(key + ".ref"), Asks: v.l.text(key + ".asks"), Shows: v.l.text(key + ".shows"), Not: v.l.text(key + ".not")}
			for _, id := range c.see {
				for _, s := range sections {
					if s.ID == id {
						cv.See = append(cv.See, s)
					}
				}
			}
			fv.Controls = append(fv.Controls, cv)
		}
		list = append(list, fv)
	}
	return list
}
