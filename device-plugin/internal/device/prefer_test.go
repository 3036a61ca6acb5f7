package device

import (
	"strings"
	"testing"
)

// cards are three units of card a on cell 0, two of card b on cell 1, and one without card and cell.
func cards(place Place) Resource {
	return Resource{Place: place, Units: []Unit{
		{ID: "a0", Card: "a", Cells: []int{0}}, {ID: "a1", Card: "a", Cells: []int{0}}, {ID: "a2", Card: "a", Cells: []int{0}},
		{ID: "b0", Card: "b", Cells: []int{1}}, {ID: "b1", Card: "b", Cells: []int{1}}, {ID: "x"},
	}}
}

// oneCell is the same with all cards on one cell.
func oneCell(place Place) Resource {
	r := cards(place)
	for i := range r.Units {
		r.Units[i].Cells = nil
	}
	return r
}

func TestPrefer(t *testing.T) {
	const all = "a0 a1 a2 b0 b1 x"
	tests := map[string]struct {
		resource        Resource
		available, must string
		size            int
		want            string
	}{
		"nothing differs":           {Resource{}, "c b a", "", 2, "a b"},
		"pack: fullest card first":  {oneCell(Pack), "a0 a1 a2 b0 b1", "", 2, "b0 b1"},
		"pack: one of a used":       {oneCell(Pack), "a0 b0 b1", "", 1, "a0"},
		"pack: more than a card":    {oneCell(Pack), "a0 a1 a2 b0 b1", "", 4, "b0 b1 a0 a1"},
		"spread: other cards":       {oneCell(Spread), "a0 a1 a2 b0 b1", "", 2, "a0 b0"},
		"spread: emptiest card":     {oneCell(Spread), "a0 b0 b1", "", 1, "b0"},
		"must be included":          {oneCell(Pack), all, "a2", 2, "a2 a0"},
		"must, spread":              {oneCell(Spread), all, "a2", 2, "a2 b0"},
		"one cell before spreading": {cards(Spread), all, "", 2, "a0 a1"},
		"cell with room for all":    {cards(Pack), "a0 b0 b1", "", 2, "b0 b1"},
		"cell of what must be":      {cards(Spread), all, "b1", 2, "b1 b0"},
		"no cell has room":          {cards(Pack), "a0 b0", "", 2, "a0 b0"},
		"less than asked for":       {cards(Pack), "a0", "", 3, "a0"},
		"unknown units":             {cards(Pack), "q r", "", 1, "q"},
		"none":                      {cards(Pack), all, "", 0, ""},
		"more must than size":       {cards(Pack), all, "a0 a1", 1, "a0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(tt.resource.Prefer(strings.Fields(tt.available), strings.Fields(tt.must), tt.size), " ")
			if got != tt.want {
				t.Errorf("Prefer = %q, want %q", got, tt.want)
			}
		})
	}
	if (Resource{}).Differs() || !cards(Anywhere).Differs() || !oneCell(Pack).Differs() {
		t.Error("Differs")
	}
}
