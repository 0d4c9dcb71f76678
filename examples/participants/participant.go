// examples/participants/participant.go
package main

import (
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
)

// Refused: nothing was done, and the saga turns back.
type Refused string

func (code Refused) Error() string { return string(code) }

type Charge struct {
	Amount float64 `json:"amount"`
}

func charge(input json.RawMessage) (any, error) {
	var asked Charge
	if err := json.Unmarshal(input, &asked); err != nil {
		return nil, Refused("bad_input")
	}
	if asked.Amount > 100 {
		return nil, Refused("card_declined")
	}
	return map[string]float64{"charged": asked.Amount}, nil
}

func refund(input json.RawMessage) (any, error) {
	var asked struct{ Input Charge }
	err := json.Unmarshal(input, &asked)
	return map[string]float64{"refunded": asked.Input.Amount}, err
}

func action(work func(json.RawMessage) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Input json.RawMessage }
		err := json.NewDecoder(r.Body).Decode(&body)
		var found any
		if err == nil {
			// With a database, both in one transaction: the barrier by r.Header.Get("Syros-Saga-Id"),
			// "Syros-Step" and "Syros-Op", then the work.
			found, err = work(body.Input)
		}
		status, refused := http.StatusOK, Refused("")
		if errors.As(err, &refused) {
			status, found = http.StatusConflict, map[string]string{"code": string(refused)}
		} else if err != nil { // nobody knows: it is asked again
			status, found = http.StatusInternalServerError, map[string]string{"code": "broken"}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(found)
	}
}

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8000"
	}
	http.HandleFunc("POST /charge", action(charge))
	http.HandleFunc("POST /refund", action(refund))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}
